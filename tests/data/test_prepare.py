"""From a source to a dataset: the same bytes every time, every class in every split, and nothing dropped silently."""

import collections
import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer.cli.app import app
from trainer.data.dataset.manifest import MAX_LISTED, Manifest
from trainer.data.dataset.split_reader import iterate_examples
from trainer.data.dataset.verify import verify_dataset
from trainer.data.preparation import splits
from trainer.data.preparation.auto_prepare import prepare_beside
from trainer.data.preparation.prepare import MAX_SHARDS, Advances, PrepareOptions, prepare_dataset
from trainer.errors import DataError

pytestmark = pytest.mark.slow


def image_bytes(seed: int, container: str = "PNG", **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, container, **options)
    return buffer.getvalue()


def make_folder(folder: pathlib.Path, **counts: int) -> pathlib.Path:
    """So many PNG images, each different, of each class."""
    seed = 0
    for class_name, count in counts.items():
        (folder / class_name).mkdir(parents=True)
        for i in range(count):
            (folder / class_name / f"{i:03}.png").write_bytes(image_bytes(seed))
            seed += 1
    return folder


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> pathlib.Path:
    return make_folder(tmp_path / "photos", cat=30, dog=20, emu=10)


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "dataset"


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# What is in a dataset.


def test_every_image_is_in_one_split_with_its_label_and_its_bytes(photos: pathlib.Path, out: pathlib.Path) -> None:
    manifest = prepare_dataset(str(photos), out)
    assert manifest == Manifest.load(out)
    assert manifest.class_names == ["cat", "dog", "emu"]
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "train": [24, 16, 8],
        "validation": [3, 2, 1],
        "test": [3, 2, 1],
    }
    assert verify_dataset(out).passed
    seen = [example for split in manifest.splits for example in iterate_examples(out, manifest, split)]
    assert sorted(example.filename for example in seen) == sorted(
        str(path.relative_to(photos)) for path in photos.rglob("*.png")
    )
    for example in seen:
        assert example.encoded == (photos / example.filename).read_bytes()
        assert manifest.class_names[example.label] == example.filename.partition("/")[0]
        assert (example.format, example.height, example.width) == ("png", 12, 16)


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers_and_the_listing(
    photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first, second = tmp_path / "a/dataset", tmp_path / "b/dataset"
    prepare_dataset(str(photos), first, options=PrepareOptions(num_workers=1, shard_bytes=8000))
    # The same files, made in another order.
    again = tmp_path / "again/photos"
    for path in sorted(photos.rglob("*.png"), reverse=True):
        (again / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, again / path.parent.name)
    shutil.rmtree(photos)
    again.parent.rename(tmp_path / "moved")
    (tmp_path / "moved/photos").rename(photos)
    prepare_dataset(str(photos), second, options=PrepareOptions(num_workers=7, shard_bytes=8000))
    assert contents(first) == contents(second)
    assert len(contents(first)) > 7  # several shards


def test_another_seed_gives_other_splits(photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def names_of_test_split(seed: int) -> set[str]:
        out = tmp_path / str(seed)
        manifest = prepare_dataset(str(photos), out, options=PrepareOptions(seed=seed))
        return {example.filename for example in iterate_examples(out, manifest, "test")}

    assert names_of_test_split(0) != names_of_test_split(1)


def test_classes_are_mixed_over_the_shards(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    source = make_folder(tmp_path / "source", a=60, b=60)
    manifest = prepare_dataset(str(source), out, options=PrepareOptions(shard_bytes=10_000))
    labels = [example.label for example in iterate_examples(out, manifest, "train")]
    start = 0
    assert len(manifest.splits["train"].shards) >= 4
    for shard in manifest.splits["train"].shards:
        part = labels[start : start + shard.num_examples]
        assert 0.15 < np.mean(part) < 0.85
        assert part != sorted(part)
        start += shard.num_examples


def test_shards_are_of_the_size_asked_for_and_never_too_many(photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    one = prepare_dataset(str(photos), tmp_path / "one")
    assert len(one.splits["train"].shards) == 1
    (shard,) = one.splits["train"].shards
    four = prepare_dataset(str(photos), tmp_path / "four", options=PrepareOptions(shard_bytes=shard.num_bytes // 4))
    assert 3 <= len(four.splits["train"].shards) <= 5
    assert four.splits["train"].shards[0].file_name == f"train-00000-of-{len(four.splits['train'].shards):05}.tfrecord"
    assert MAX_SHARDS > 48
    each = prepare_dataset(str(photos), tmp_path / "each", options=PrepareOptions(shard_bytes=1))
    assert [shard.num_examples for shard in each.splits["train"].shards] == [1] * 48


def test_a_split_of_the_source_is_kept_and_the_rest_is_cut(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    make_folder(tmp_path / "source/train", cat=20, dog=20)
    make_folder(tmp_path / "source/test", cat=3, dog=5)
    manifest = prepare_dataset(str(tmp_path / "source"), out)
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "train": [18, 18],
        "validation": [2, 2],
        "test": [3, 5],
    }
    names = {example.filename for example in iterate_examples(out, manifest, "test")}
    assert all(name.startswith("test/") for name in names)


def test_a_share_of_zero_makes_no_split(photos: pathlib.Path, out: pathlib.Path) -> None:
    manifest = prepare_dataset(str(photos), out, options=PrepareOptions(test_fraction=0))
    assert list(manifest.splits) == ["train", "validation"]


@hypothesis.settings(deadline=None)
@hypothesis.given(
    num_examples=st.dictionaries(st.integers(0, 3), st.integers(3, 60), min_size=1),
    group_sizes=st.lists(st.dictionaries(st.integers(0, 3), st.integers(1, 9), min_size=1), max_size=12),
    validation=st.sampled_from([0.1, 0.45]),
    test=st.sampled_from([0.1, 0.54]),
)
def test_groups_and_single_examples_together_fill_every_split(
    num_examples: dict[int, int], group_sizes: list[dict[int, int]], validation: float, test: float
) -> None:
    """`num_examples` is of those without a group; they make up for what the groups have too much of."""
    groups = [{stratum: size for stratum, size in group.items() if stratum in num_examples} for group in group_sizes]
    in_groups = sum((collections.Counter(group) for group in groups), collections.Counter())
    total = collections.Counter(num_examples) + in_groups
    units = {stratum: count + sum(stratum in group for group in groups) for stratum, count in num_examples.items()}
    fractions: dict[splits.SplitName, float] = {"validation": validation, "test": test}
    stratification = splits.Stratification(total, units, fractions)
    found: collections.Counter[tuple[str, int]] = collections.Counter()
    for group in groups:
        split = stratification.place_group(group)
        for stratum, size in group.items():
            found[split, stratum] += size
    from_groups = found.copy()
    for stratum, count in num_examples.items():
        sizes = stratification.sizes_of_singles(stratum, count)
        assert sum(sizes.values()) == count
        assert min(sizes.values()) >= 0
        for split, size in sizes.items():
            found[split, stratum] += size
    for stratum, count in total.items():
        wanted = splits.cut_sizes(count, fractions)
        assert all(found[split, stratum] >= 1 for split in ("train", "validation", "test"))
        for split, size in wanted.items():
            # Exactly the share, but where groups put more than that into this split, or training took its one.
            assert found[split, stratum] <= max(size, from_groups[split, stratum])


@hypothesis.given(
    counts=st.dictionaries(st.sampled_from([None, 0, 1, 2]), st.integers(1, 50), min_size=1),
    smaller=st.floats(0.01, 1),
    larger=st.floats(0.01, 1),
    per_class=st.integers(1, 150),
)
def test_a_larger_share_takes_no_less_and_a_limit_is_kept(
    counts: dict[int | None, int], smaller: float, larger: float, per_class: int
) -> None:
    smaller, larger = sorted((smaller, larger))
    few, many = (splits.sizes_of_fraction(counts, fraction) for fraction in (smaller, larger))
    assert all(1 <= few[part] <= many[part] <= counts[part] for part in counts)
    assert splits.sizes_of_fraction(counts, 1.0) == counts
    sizes = splits.sizes_per_class(counts, per_class)
    assert sum(sizes.values()) == min(per_class, sum(counts.values()))
    assert all(0 <= sizes[part] <= counts[part] for part in counts)
    if per_class >= len(counts):
        assert min(sizes.values()) >= 1


# Odd and unusable files.


def test_rotated_images_are_turned_and_counted(photos: pathlib.Path, out: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(3):
        (photos / f"cat/turned{i}.png").write_bytes(image_bytes(100 + i, "JPEG", exif=exif))
    (photos / "cat/print.jpg").write_bytes(image_bytes(7, "TIFF"))
    manifest = prepare_dataset(str(photos), out)
    assert manifest.num_reencoded == {"converted from TIFF": 1, "rotated upright": 3}
    assert manifest.bad_files == []
    examples = {e.filename: e for split in manifest.splits for e in iterate_examples(out, manifest, split)}
    turned = examples["cat/turned0.png"]
    assert (turned.format, turned.height, turned.width) == ("jpeg", 16, 12)
    assert Image.open(io.BytesIO(turned.encoded)).size == (12, 16)
    assert examples["cat/print.jpg"].format == "png"


def test_unusable_files_are_listed_with_their_reasons(photos: pathlib.Path, out: pathlib.Path) -> None:
    (photos / "cat/empty.png").touch()
    (photos / "dog/half.png").write_bytes(image_bytes(0)[:200])
    (photos / "dog/page.jpg").write_text("a page")
    (photos / "emu/gone.png").symlink_to("nowhere")
    os.mkfifo(photos / "emu/pipe.png")
    (photos / "emu" / os.fsdecode(b"caf\xe9.png")).write_text("x")
    manifest = prepare_dataset(str(photos), out, options=PrepareOptions(max_bad_fraction=0.1))
    assert {bad.path: bad.reason.partition(":")[0] for bad in Manifest.load(out).bad_files} == {
        "cat/empty.png": "empty",
        "dog/half.png": "truncated",
        "dog/page.jpg": "not an image",
        "emu/gone.png": "missing",
        "emu/pipe.png": "cannot be read",
        "emu/caf\\xe9.png": "not an image",
    }
    assert sum(split.num_examples for split in manifest.splits.values()) == 60
    assert manifest.num_bad_files == {"cannot be read": 1, "empty": 1, "missing": 1, "not an image": 2, "truncated": 1}
    lines = [json.loads(line) for line in (out / "bad_files.jsonl").read_text().splitlines()]
    assert lines == [bad.model_dump() for bad in manifest.bad_files]


def test_the_manifest_lists_some_bad_files_and_counts_all(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    source = make_folder(tmp_path / "source", a=5, b=5)
    for i in range(MAX_LISTED + 7):
        (source / f"a/bad{i:05}.png").write_bytes(b"text" if i % 2 else b"")
    manifest = prepare_dataset(str(source), out, options=PrepareOptions(max_bad_fraction=1))
    assert manifest.num_bad_files == {"empty": MAX_LISTED // 2 + 4, "not an image": MAX_LISTED // 2 + 3}
    assert [bad.path for bad in manifest.bad_files] == [f"a/bad{i:05}.png" for i in range(MAX_LISTED)]
    paths = [json.loads(line)["path"] for line in (out / "bad_files.jsonl").read_text().splitlines()]
    assert paths == [f"a/bad{i:05}.png" for i in range(MAX_LISTED + 7)]


def test_too_many_unusable_files_are_an_error_and_leave_nothing(photos: pathlib.Path, out: pathlib.Path) -> None:
    for i in range(5):
        (photos / f"cat/bad{i}.png").write_bytes(b"text")
    message = r"5 of 65 files \(7.7%\) .* --max-bad-fraction 0.05: cat/bad0.png \(not an image: a text\).* and 2 more"
    with pytest.raises(DataError, match=message):
        prepare_dataset(str(photos), out, options=PrepareOptions(max_bad_fraction=0.05))
    assert not out.exists()
    prepare_dataset(str(photos), out, options=PrepareOptions(max_bad_fraction=5 / 65))


def test_a_file_name_of_any_bytes_is_kept(photos: pathlib.Path, out: pathlib.Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (photos / "cat" / name).write_bytes(image_bytes(200))
    manifest = prepare_dataset(str(photos), out)
    names = {e.filename for split in manifest.splits for e in iterate_examples(out, manifest, split)}
    assert f"cat/{name}" in names


# Wrong usage.


def test_one_class_is_an_error(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"has 1 class \('cat'\); a classifier needs at least 2"):
        prepare_dataset(str(make_folder(tmp_path / "source", cat=9)), out)


@pytest.mark.parametrize(("num_dogs", "fix"), [(0, "--exclude dog"), (2, "--exclude dog, or give --test 0")])
def test_a_class_with_fewer_images_than_splits_is_an_error(
    tmp_path: pathlib.Path, out: pathlib.Path, num_dogs: int, fix: str
) -> None:
    source = make_folder(tmp_path / "source", cat=9, dog=num_dogs)
    message = rf"'dog' has {num_dogs} readable .* 3 splits \(train, validation, test\); .* {fix}$"
    with pytest.raises(DataError, match=message):
        prepare_dataset(str(source), out)
    assert not out.exists()


def test_a_class_whose_images_are_mostly_bad_is_an_error(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    source = make_folder(tmp_path / "source", cat=9, dog=3)
    (source / "dog/000.png").write_bytes(b"")
    with pytest.raises(DataError, match="'dog' has 2 readable images"):
        prepare_dataset(str(source), out, options=PrepareOptions(max_bad_fraction=1))


def test_a_class_that_the_own_test_split_lacks_is_an_error(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    make_folder(tmp_path / "source/train", cat=9, dog=9)
    make_folder(tmp_path / "source/test", cat=3)
    with pytest.raises(DataError, match="'dog' has no readable image in the source's own test split"):
        prepare_dataset(str(tmp_path / "source"), out)


def test_a_class_name_that_would_break_a_list_is_an_error(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    make_folder(tmp_path / "source", **{"cat": 3, "d\nog": 3})
    with pytest.raises(DataError, match=r"class name 'd\\nog'"):
        prepare_dataset(str(tmp_path / "source"), out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": -0.1}, "--val is -0.1"),
        ({"test_fraction": 1.0}, "--test is 1.0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"validation_fraction": float("nan")}, "--val is nan"),
        ({"max_bad_fraction": 2.0}, "--max-bad-fraction is 2.0"),
    ],
)
def test_shares_out_of_range_are_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PrepareOptions(**options)  # type: ignore[arg-type]


# What stands on the disk.


def test_a_finished_dataset_is_replaced_only_when_asked(photos: pathlib.Path, out: pathlib.Path) -> None:
    prepare_dataset(str(photos), out)
    with pytest.raises(DataError, match="--overwrite, or another --out"):
        prepare_dataset(str(photos), out)
    replaced = prepare_dataset(str(photos), out, options=PrepareOptions(seed=3), overwrite=True)
    assert Manifest.load(out) == replaced
    assert {path.name for path in out.parent.iterdir()} == {"photos", "dataset"}


def test_a_folder_that_is_no_dataset_is_never_replaced(photos: pathlib.Path, out: pathlib.Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="is not a prepared dataset; give --out a new folder"):
        prepare_dataset(str(photos), out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_out_and_source_may_not_contain_each_other(photos: pathlib.Path) -> None:
    for target in (photos, photos / "dataset", photos.parent):
        with pytest.raises(DataError, match="overlap"):
            prepare_dataset(str(photos), target, overwrite=True)


class Uncounted:
    def advance(self, amount: int = 1) -> None: ...


def test_an_image_that_changes_meanwhile_is_named(photos: pathlib.Path, out: pathlib.Path) -> None:
    @contextlib.contextmanager
    def change_one(description: str, total: int) -> Iterator[Advances]:
        if description == "writing":
            (photos / "dog/003.png").write_bytes(image_bytes(999))

        yield Uncounted()

    with pytest.raises(DataError, match=r"dog/003\.png changed while the dataset was being prepared"):
        prepare_dataset(str(photos), out, progress=change_one)
    assert not out.exists()


# Beside a raw folder.


def test_a_raw_folder_is_prepared_once_and_again_when_it_changed(photos: pathlib.Path) -> None:
    notes: list[str] = []
    first = prepare_beside(photos, note=notes.append)
    assert first == photos.with_name("photos.trainer-dataset")
    inode = (first / "manifest.json").stat().st_ino
    assert prepare_beside(photos, note=notes.append) == first
    assert (first / "manifest.json").stat().st_ino == inode
    (photos / "cat/000.png").write_bytes(image_bytes(500))
    prepare_beside(photos, note=notes.append)
    assert (first / "manifest.json").stat().st_ino != inode
    (photos / "cat/001.png").rename(photos / "dog/001b.png")
    prepare_beside(photos, note=notes.append)
    assert Manifest.load(first).splits["train"].num_examples == 48
    prepare_beside(photos, options=PrepareOptions(seed=1), note=notes.append)
    assert Manifest.load(first).seed == 1
    kinds = [next(word for word in ("once", "using", "changed") if word in note) for note in notes]
    assert kinds == ["once", "using", "changed", "changed", "changed"]


def test_a_listing_is_prepared_beside_itself_too(photos: pathlib.Path) -> None:
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in photos.rglob("*.png")]
    listing = photos / "list.csv"
    listing.write_text("\n".join(["path,label", *rows]))
    dataset_dir = prepare_beside(listing, note=lambda message: None)
    assert dataset_dir == photos / "list.csv.trainer-dataset"
    assert Manifest.load(dataset_dir).class_names == ["cat", "dog", "emu"]


def test_a_half_finished_dataset_beside_is_prepared_again(photos: pathlib.Path) -> None:
    dataset_dir = prepare_beside(photos, note=lambda message: None)
    (dataset_dir / "prepared_from.json").unlink()
    notes: list[str] = []
    prepare_beside(photos, note=notes.append)
    assert "preparing it again" in notes[0]


_PREPARE_AND_DIVIDE = """
import pathlib, sys
from trainer.system import tf_runtime
from trainer.data.preparation.prepare import prepare_dataset
tf_runtime.configure()
prepare_dataset(sys.argv[1], pathlib.Path(sys.argv[2]))
print(len(tf_runtime.split_cpu(3)))
"""


def test_preparing_leaves_the_devices_to_be_laid_out(photos: pathlib.Path, out: pathlib.Path) -> None:
    """`launch` prepares a raw folder first, and divides the CPU or joins a cluster after."""
    command = [sys.executable, "-c", _PREPARE_AND_DIVIDE, str(photos), str(out)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert answer.stdout == "3\n", answer.stderr


# The command.


def test_the_command_shows_counts_findings_and_what_to_type_next(photos: pathlib.Path, out: pathlib.Path) -> None:
    (photos / "cat/[bold].png").touch()
    (photos / "dog/scan.tif").write_bytes(image_bytes(7, "TIFF"))
    result = CliRunner().invoke(app, ["prepare", str(photos), "--out", str(out), "--max-bad-fraction", "0.05"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["class", "train", "validation", "test"] in rows
    assert ["dog", "17", "2", "2"] in rows
    assert ["3", "classes", "49", "6", "6"] in rows
    assert f"left out    1 empty; {out}/bad_files.jsonl lists them" in result.stdout.replace("\n", "")
    assert "re-encoded  1 converted from TIFF" in result.stdout
    assert f"trainer launch --data {out}" in result.stdout.replace("\n", "")
    assert "checking 62/62" in result.stderr


def test_the_command_answers_programs_in_json(photos: pathlib.Path, out: pathlib.Path) -> None:
    result = CliRunner().invoke(app, ["prepare", str(photos), "--out", str(out), "--seed", "4", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["splits"]["train"]["class_counts"] == [24, 16, 8]
    assert answer["content_hash"] == Manifest.load(out).content_hash()
    assert answer["bad_files"] == []


@pytest.mark.parametrize("source", ["nowhere", "photos/cat"])
def test_the_command_answers_bad_input_with_a_data_error(photos: pathlib.Path, out: pathlib.Path, source: str) -> None:
    result = CliRunner().invoke(app, ["prepare", str(photos.parent / source), "--out", str(out)])
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_status == 2
    assert not out.exists()
