"""What `prepare` takes and leaves: classes, shares, groups, several labels, sizes, duplicates; and that it says so."""

import collections
import contextlib
import io
import json
import pathlib
from collections.abc import Iterator, Sequence

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer.cli.app import app
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.records import Example
from trainer.data.dataset.split_reader import iterate_examples
from trainer.data.preparation.assign_splits import choose_splits
from trainer.data.preparation.list_images import list_candidates
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset
from trainer.data.preparation.state import CLASS_NAMES, State
from trainer.data.sources import Candidate, Source
from trainer.errors import DataError


def picture(seed: int, height: int = 8, width: int = 9) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> pathlib.Path:
    for number, (name, count) in enumerate([("cat", 40), ("dog", 20), ("emu", 10)]):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * number + i).save(tmp_path / "photos" / name / f"{i:03}.png")
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "dataset"


def examples_of(out: pathlib.Path) -> dict[str, list[Example]]:
    manifest = Manifest.load(out)
    return {split: list(iterate_examples(out, manifest, split)) for split in manifest.splits}


def names_of(out: pathlib.Path) -> set[str]:
    return {example.filename for examples in examples_of(out).values() for example in examples}


# Classes and shares.


def test_a_share_of_each_class_is_trained_on_and_validation_and_test_stay_whole(
    photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def prepare(name: str, **options: float) -> tuple[Manifest, dict[str, set[str]]]:
        manifest = prepare_dataset(str(photos), tmp_path / name, options=PrepareOptions(**options))
        return manifest, {
            split: {example.filename for example in examples}
            for split, examples in examples_of(tmp_path / name).items()
        }

    (_, whole), (fifth, of_fifth), (_, of_tenth) = (
        prepare("whole"),
        prepare("fifth", train_fraction=0.2),
        prepare("tenth", train_fraction=0.1),
    )
    assert fifth.splits["train"].class_counts == [8, 4, 2]
    assert fifth.num_left_out == {"over --train": 70 - 14 - 14}
    for split in ("validation", "test"):
        assert of_fifth[split] == of_tenth[split] == whole[split]
    assert of_tenth["train"] < of_fifth["train"] < whole["train"]


def test_shares_of_training_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match=r"--train 0\.9, --val 0\.1 and --test 0\.1 are more than all images"):
        PrepareOptions(train_fraction=0.9)
    PrepareOptions(train_fraction=0.7, validation_fraction=0.2)
    with pytest.raises(DataError, match="--train is 0; expected a share"):
        PrepareOptions(train_fraction=0)


def test_an_excluded_class_is_gone_and_the_labels_close_up(photos: pathlib.Path, out: pathlib.Path) -> None:
    manifest = prepare_dataset(str(photos), out, options=PrepareOptions(exclude=("dog",)))
    assert manifest.class_names == ["cat", "emu"]
    assert manifest.num_left_out == {"of an excluded class": 20}
    labels = {(e.filename[:3], e.label) for examples in examples_of(out).values() for e in examples}
    assert labels == {("cat", 0), ("emu", 1)}


def test_an_unknown_class_to_exclude_names_the_nearest(photos: pathlib.Path, out: pathlib.Path) -> None:
    with pytest.raises(DataError, match="--exclude 'dogs' is no class of the source; did you mean 'dog'"):
        prepare_dataset(str(photos), out, options=PrepareOptions(exclude=("dogs",)))


def test_a_share_is_of_each_class_and_part_of_a_larger_share(photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    taken = []
    for fraction in (0.3, 0.5, 1.0):
        out = tmp_path / str(fraction)
        manifest = prepare_dataset(str(photos), out, options=PrepareOptions(fraction=fraction))
        counts = np.sum([split.class_counts for split in manifest.splits.values()], axis=0)
        assert counts.tolist() == [40 * fraction, 20 * fraction, 10 * fraction]
        assert sum(manifest.num_left_out.values()) == 70 - sum(counts)
        taken.append(names_of(out))
    assert taken[0] < taken[1] < taken[2]


def test_another_seed_takes_another_share(photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for seed in (0, 1):
        prepare_dataset(str(photos), tmp_path / str(seed), options=PrepareOptions(fraction=0.3, seed=seed))
    assert names_of(tmp_path / "0") != names_of(tmp_path / "1")


def test_at_most_so_many_of_a_class_over_all_splits(photos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    manifest = prepare_dataset(str(photos), tmp_path / "a", options=PrepareOptions(per_class=15))
    assert np.sum([split.class_counts for split in manifest.splits.values()], axis=0).tolist() == [15, 15, 10]
    assert manifest.num_left_out == {"over --per-class": 30}
    (photos.parent / "divided/train").mkdir(parents=True)
    for name in ("cat", "dog", "emu"):
        (photos / name).rename(photos.parent / "divided/train" / name)
        (photos.parent / "divided/test" / name).mkdir(parents=True)
        for i in range(4):
            picture(9000 + i).save(photos.parent / "divided/test" / name / f"{i}.png")
    manifest = prepare_dataset(str(photos.parent / "divided"), tmp_path / "b", options=PrepareOptions(per_class=7))
    assert np.sum([split.class_counts for split in manifest.splits.values()], axis=0).tolist() == [7, 7, 7]
    assert min(manifest.splits["test"].class_counts) >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "--fraction is 0.0"),
        ({"fraction": 1.5}, "--fraction is 1.5"),
        ({"fraction": float("nan")}, "--fraction is nan"),
        ({"per_class": 0}, "--per-class is 0"),
        ({"max_side_px": 0}, "--max-side is 0"),
    ],
)
def test_values_out_of_range_are_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PrepareOptions(**options)  # type: ignore[arg-type]


def test_the_manifest_says_what_was_asked_for(photos: pathlib.Path, out: pathlib.Path) -> None:
    options = PrepareOptions(exclude=("dog",), fraction=0.5, max_side_px=100, num_workers=3)
    prepare_dataset(str(photos), out, options=options)
    found = Manifest.load(out).options
    assert (found["exclude"], found["fraction"], found["max_side_px"], found["group_column"]) == (
        ["dog"],
        0.5,
        100,
        None,
    )
    assert "num_workers" not in found


# Groups.


class ListedSource(Source):
    """Candidates from a list; each has bytes of its own."""

    name = "listed"

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = candidates

    def candidates(self) -> Iterator[Candidate]:
        yield from self._candidates

    def read(self, candidate: Candidate) -> bytes:
        raise AssertionError("only listed")


def chosen_splits(candidates: Sequence[Candidate], options: PrepareOptions) -> dict[str, list[str]]:
    """The file names of each split in their order, without reading anything."""
    with contextlib.closing(State(pathlib.Path(":memory:"), seed=options.seed)) as state:
        list_candidates(state, ListedSource(candidates), "listed", options)
        choose_splits(state, state.fact(CLASS_NAMES), options)
        rows = state.connection.execute(
            "SELECT places.split, filename FROM places JOIN candidates USING (id) ORDER BY places.split, position"
        ).fetchall()
    found: dict[str, list[str]] = collections.defaultdict(list)
    for split, filename in rows:
        found[("train", "validation", "test")[split]].append(filename.decode())
    return found


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([None, None, None, "test"]),
        st.sampled_from([None, None, "g1", "g2", "g3", "g4", "g5", "g6", "g7"]),
    ),
    min_size=1,
    max_size=90,
)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
    rows=ROWS,
    validation=st.sampled_from([0, 0.1, 0.45]),
    test=st.sampled_from([0, 0.1, 0.54]),
    seed=st.integers(0, 5),
    with_groups=st.booleans(),
)
def test_splits_are_stratified_whole_in_groups_complete_and_blind_to_the_order(
    rows: list[tuple[str, SplitName | None, str | None]], validation: float, test: float, seed: int, with_groups: bool
) -> None:
    if not with_groups:
        rows = [(name, split, None) for name, split, _ in rows]
    candidates = [
        # A group that the source itself divides is an error.
        Candidate(filename=f"{i:03}", class_names=(name,), split=None if group else split, group=group)
        for i, (name, split, group) in enumerate(rows)
    ]
    options = PrepareOptions(validation_fraction=validation, test_fraction=test, seed=seed)
    try:
        found = chosen_splits(candidates, options)
    except DataError:
        return
    assert chosen_splits(candidates[::-1], options) == found
    by_name = {candidate.filename: candidate for candidate in candidates}
    assert sorted(name for names in found.values() for name in names) == sorted(by_name)
    split_of = {name: split for split, names in found.items() for name in names}
    assert all(candidate.split in (None, split_of[candidate.filename]) for candidate in candidates)
    groups = collections.defaultdict(set)
    for candidate in candidates:
        if candidate.group is not None:
            groups[candidate.group].add(split_of[candidate.filename])
    assert all(len(splits) == 1 for splits in groups.values())
    own_test = any(candidate.split == "test" for candidate in candidates)
    is_divided = any(candidate.split is None for candidate in candidates)
    shares = {"validation": validation, "test": 0 if own_test else test}
    for class_name in {candidate.class_names[0] for candidate in candidates}:
        of_class = [candidate for candidate in candidates if candidate.class_names == (class_name,)]
        counts = collections.Counter(split_of[candidate.filename] for candidate in of_class)
        num_free = sum(candidate.split is None for candidate in of_class)
        assert all(
            counts[split] >= 1 for split in ("train", *(s for s, share in shares.items() if share)) if is_divided
        )
        if not with_groups:
            for split, share in shares.items():  # but for rounding and for the one that each split must have
                if share:
                    assert abs(counts[split] - num_free * share) <= 1 or num_free <= 4


def test_large_groups_are_placed_so_that_the_shares_come_near(tmp_path: pathlib.Path) -> None:
    candidates = [
        Candidate(filename=f"{i:04}", class_names=("ab"[i % 2],), group=f"patient {i // 10}") for i in range(1000)
    ]
    found = chosen_splits(candidates, PrepareOptions())
    assert {split: len(names) for split, names in found.items()} == {"train": 800, "validation": 100, "test": 100}
    split_of = {name: split for split, names in found.items() for name in names}
    groups = collections.defaultdict(set)
    for candidate in candidates:
        groups[candidate.group].add(split_of[candidate.filename])
    assert len(groups) == 100
    assert all(len(splits) == 1 for splits in groups.values())


def test_a_class_in_too_few_groups_is_an_error() -> None:
    candidates = [Candidate(filename=f"{i:03}", class_names=("a",)) for i in range(30)]
    candidates += [Candidate(filename=f"b{i:03}", class_names=("b",), group=f"g{i % 2}") for i in range(30)]
    with pytest.raises(DataError, match=r"class 'b' is in 2 groups, .* needs one for each of the splits \(train, val"):
        chosen_splits(candidates, PrepareOptions())


def test_a_group_that_the_source_divides_itself_is_an_error() -> None:
    candidates = [
        Candidate(
            filename=f"{i:03}", class_names=("ab"[i % 2],), split=("train", "test")[i % 3 == 0], group=f"g{i // 2}"
        )
        for i in range(30)
    ]
    with pytest.raises(DataError, match="group 'g0' is in more than one of the source's own splits"):
        chosen_splits(candidates, PrepareOptions())


def test_a_group_column_of_a_listing_keeps_groups_together(photos: pathlib.Path, out: pathlib.Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    rows = [f"{path.relative_to(photos)},{path.parent.name},p{int(path.stem) // 3}" for path in paths]
    (photos / "list.csv").write_text("\n".join(["path,label,patient", *rows]))
    options = ["--group-column", "patient", "--val", "0.2", "--json"]
    result = CliRunner().invoke(app, ["prepare", str(photos / "list.csv"), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    found = collections.defaultdict(set)
    for split, examples in examples_of(out).items():
        for example in examples:
            found[int(example.filename[-7:-4]) // 3].add(split)
    assert len(found) == 14
    assert all(len(splits) == 1 for splits in found.values())
    counts = {name: split["class_counts"] for name, split in json.loads(result.stdout)["splits"].items()}
    assert min(count for of_split in counts.values() for count in of_split) >= 1


# Several labels, and weights.


def test_several_labels_are_stored_in_rising_order_and_counted_each(photos: pathlib.Path, out: pathlib.Path) -> None:
    rows = []
    for i, path in enumerate(sorted(photos.rglob("*.png"))):
        labels = [["sofa", "cat"], ["cat"], ["zebra", "cat", "lamp"], ["lamp"]][i % 4]
        rows.append(json.dumps({"path": str(path.relative_to(photos)), "labels": labels, "weight": 1 + i % 2}))
    (photos / "list.jsonl").write_text("\n".join(rows))
    manifest = prepare_dataset(str(photos / "list.jsonl"), out)
    assert manifest.task == "multi_label"
    assert manifest.has_weights
    assert manifest.class_names == ["cat", "lamp", "sofa", "zebra"]
    examples = [example for of_split in examples_of(out).values() for example in of_split]
    assert {example.labels for example in examples} == {(0, 2), (0,), (0, 1, 3), (1,)}
    assert {example.weight for example in examples} == {1.0, 2.0}
    for split, of_split in examples_of(out).items():
        counts = collections.Counter(label for example in of_split for label in example.labels)
        assert manifest.splits[split].class_counts == [counts[label] for label in range(4)]
        assert min(manifest.splits[split].class_counts) >= 1
    # The rarest label is what is stratified: 17 of "zebra", a tenth of which is 2.
    assert [manifest.splits[split].class_counts[3] for split in ("train", "validation", "test")] == [13, 2, 2]


def test_one_label_and_no_weights_is_said_too(photos: pathlib.Path, out: pathlib.Path) -> None:
    manifest = prepare_dataset(str(photos), out)
    assert (manifest.task, manifest.has_weights) == ("single_label", False)


def test_excluding_one_of_several_labels_keeps_the_image(photos: pathlib.Path, out: pathlib.Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    rows = [
        json.dumps({"path": str(path.relative_to(photos)), "labels": [["x", "y"], ["y", "z"], ["z"]][i % 3]})
        for i, path in enumerate(paths)
    ]
    (photos / "list.jsonl").write_text("\n".join(rows))
    manifest = prepare_dataset(str(photos / "list.jsonl"), out, options=PrepareOptions(exclude=("z",)))
    assert manifest.class_names == ["x", "y"]
    assert {e.labels for examples in examples_of(out).values() for e in examples} == {(0, 1), (1,)}
    assert manifest.num_left_out == {"of an excluded class": sum(i % 3 == 2 for i in range(len(paths)))}


# The same file, and the same bytes.


def test_an_image_that_is_named_twice_is_an_error_with_both_lines(photos: pathlib.Path, out: pathlib.Path) -> None:
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    (photos / "list.csv").write_text("\n".join(["path,label", *rows, "./cat/../cat/001.png,dog"]))
    with pytest.raises(DataError, match=r"cat/001\.png is named twice by the source \(line 3 and line 72\); remove"):
        prepare_dataset(str(photos / "list.csv"), out)


def test_the_same_bytes_in_two_splits_are_counted_listed_and_warned_of(photos: pathlib.Path, out: pathlib.Path) -> None:
    for name in ("train", "test"):
        (photos.parent / "divided" / name).mkdir(parents=True)
    for name in ("cat", "dog", "emu"):
        (photos / name).rename(photos.parent / "divided/train" / name)
        folder = photos.parent / "divided/test" / name
        folder.mkdir()
        picture(5000 + len(name) + ord(name[0])).save(folder / "new.png")
    copy = (photos.parent / "divided/train/cat/007.png").read_bytes()
    (photos.parent / "divided/test/cat/copy.png").write_bytes(copy)
    (photos.parent / "divided/test/cat/copy again.png").write_bytes(copy)
    inside = (photos.parent / "divided/test/dog/new.png").read_bytes()
    (photos.parent / "divided/test/dog/twice in one split.png").write_bytes(inside)
    command = ["prepare", str(photos.parent / "divided"), "--out", str(out), "--val", "0"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    manifest = Manifest.load(out)
    assert manifest.num_duplicates_across_splits == 3
    assert [duplicate.paths for duplicate in manifest.duplicates] == [
        {"train": "train/cat/007.png", "test": "test/cat/copy again.png"}
    ]
    assert "warning     3 files are in more than one split" in result.stdout
    assert "train/cat/007.png and test/cat/copy again.png" in result.stdout.replace("\n", " ")


# The largest side.


def test_what_is_larger_is_made_smaller_and_counted(photos: pathlib.Path, out: pathlib.Path) -> None:
    smooth = np.linspace(0, 255, 300 * 200).reshape(200, 300).astype(np.uint8)
    large = Image.fromarray(np.dstack([smooth, smooth[::-1], smooth[:, ::-1]]))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(photos / "cat/large.png")
    large.save(photos / "cat/large.jpg", quality=95)
    large.save(photos / "cat/turned.jpg", quality=95, exif=exif)
    large.resize((60, 40)).save(photos / "cat/as it is.jpg", quality=95)
    kept = (photos / "cat/as it is.jpg").read_bytes()
    manifest = prepare_dataset(str(photos), out, options=PrepareOptions(max_side_px=60))
    assert manifest.num_reencoded == {"made smaller": 3}
    found = {e.filename: e for examples in examples_of(out).values() for e in examples}
    sizes = {name: (e.format, e.height, e.width) for name, e in found.items() if "large" in name or "turned" in name}
    assert sizes == {
        "cat/large.png": ("png", 40, 60),
        "cat/large.jpg": ("jpeg", 40, 60),
        "cat/turned.jpg": ("jpeg", 60, 40),
    }
    assert found["cat/as it is.jpg"].encoded == kept
    expected = np.asarray(large.resize((60, 40), Image.Resampling.LANCZOS)).astype(int)
    for name, turn in (("cat/large.png", 0), ("cat/large.jpg", 0), ("cat/turned.jpg", 1)):
        pixels = np.rot90(np.asarray(Image.open(io.BytesIO(found[name].encoded))).astype(int), turn)
        assert np.abs(pixels - expected).mean() < 3


# The command.


def test_the_command_says_what_was_not_taken(photos: pathlib.Path, out: pathlib.Path) -> None:
    options = ["--exclude", "emu", "--fraction", "0.5", "--per-class", "12"]
    result = CliRunner().invoke(app, ["prepare", str(photos), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if line.startswith("not taken"))
    assert line == "not taken   30 over --fraction, 10 of an excluded class, 8 over --per-class"
    assert names_of(out).isdisjoint({f"emu/{i:03}.png" for i in range(10)})
