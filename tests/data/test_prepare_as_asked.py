"""Splits as asked, whatever the source brings; files that are no images by their kind; and advice that works."""

import io
import json
import pathlib
import shlex
import tarfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from trainer.cli.app import app
from trainer.cli.launch import evaluate_command
from trainer.config.config import Config
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.split_reader import iterate_examples
from trainer.data.preparation.auto_prepare import prepare_beside
from trainer.data.preparation.command import check_trainable
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset
from trainer.errors import DataError
from trainer.plan.recipe_choice import choose_recipe


def image_bytes(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make(folder: pathlib.Path, **counts: int) -> pathlib.Path:
    """So many images of cats and dogs each in each part of the source; no part for the name `all`."""
    seed = 0
    for part, count in counts.items():
        for name in ("cat", "dog"):
            directory = folder / name if part == "all" else folder / part / name
            directory.mkdir(parents=True)
            for i in range(count):
                (directory / f"{i}.png").write_bytes(image_bytes(seed))
                seed += 1
    return folder


def as_listing(folder: pathlib.Path) -> pathlib.Path:
    rows = []
    for path in sorted(folder.rglob("*.png")):
        part, name, _ = path.relative_to(folder).parts
        rows.append(f"{path.relative_to(folder)},{name},{part}")
    listing = folder / "listing.csv"
    listing.write_text("\n".join(["path,label,split", *rows]))
    return listing


def as_archive(folder: pathlib.Path) -> pathlib.Path:
    path = folder.with_name("source.tgz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "source")
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def sizes(manifest: Manifest) -> dict[str, int]:
    return {name: split.num_examples for name, split in manifest.splits.items()}


# Splits.


@pytest.mark.parametrize("kind", ["folder", "listing", "archive"])
@pytest.mark.parametrize(("given", "missing", "option"), [("test", "validation", "--val"), ("val", "test", "--test")])
def test_a_missing_split_is_cut_from_train_as_asked_printed_and_kept(
    tmp_path: pathlib.Path, kind: str, given: str, missing: str, option: str
) -> None:
    folder = make(tmp_path / "source", train=20, **{given: 3})
    source = {"folder": lambda f: f, "listing": as_listing, "archive": as_archive}[kind](folder)
    out = tmp_path / "dataset"
    result = run("prepare", str(source), "--out", str(out), option, "0.15")
    assert result.exit_code == 0, result.output
    own = {"val": "validation"}.get(given, given)
    manifest = Manifest.load(out)
    assert sizes(manifest) == {"train": 34, missing: 6, own: 6}
    assert manifest.splits[missing].class_counts == [3, 3]
    assert manifest.split_origins == {"train": "given", missing: "train", own: "given"}
    assert {e.filename.split("/")[-3] for e in iterate_examples(out, manifest, missing)} == {"train"}
    text = " ".join(result.stdout.split())
    assert f"splits {missing} (6) cut from the source's own 40 for training" in text


def test_a_source_that_is_not_divided_and_one_that_brings_all_say_so(tmp_path: pathlib.Path) -> None:
    manifest = prepare_dataset(str(make(tmp_path / "a", all=10)), tmp_path / "out-a")
    assert manifest.split_origins == {"train": "all", "validation": "all", "test": "all"}
    listing = as_listing(make(tmp_path / "b", train=10, val=2, test=2))
    manifest = prepare_dataset(str(listing), tmp_path / "out-b")
    assert sizes(manifest) == {"train": 20, "validation": 4, "test": 4}
    assert set(manifest.split_origins.values()) == {"given"}


def test_of_a_listing_with_empty_splits_only_these_are_divided(tmp_path: pathlib.Path) -> None:
    folder = make(tmp_path / "source", train=10, rest=10)
    listing = as_listing(folder)
    listing.write_text(listing.read_text().replace(",rest", ","))
    out = tmp_path / "out"
    manifest = prepare_dataset(str(listing), out, options=PrepareOptions(validation_fraction=0.5, test_fraction=0))
    assert {e.filename.split("/")[0] for e in iterate_examples(out, manifest, "validation")} == {"rest"}
    assert sizes(manifest) == {"train": 30, "validation": 10}
    assert manifest.split_origins == {"train": "given", "validation": "rest"}


def test_without_a_validation_split_the_command_is_named_that_makes_one(tmp_path: pathlib.Path) -> None:
    source, out = make(tmp_path / "my photos", all=10), tmp_path / "dataset"
    result = run("prepare", str(source), "--out", str(out), "--val", "0", "--test", "0.2", "--seed", "3")
    assert result.exit_code == 0
    assert "trainer launch" not in result.stdout
    manifest = Manifest.load(out)
    assert sizes(manifest) == {"train": 16, "test": 4}
    assert evaluate_command(pathlib.Path("my run"), str(out)) == "trainer evaluate 'my run' --split test"
    with pytest.raises(DataError, match=r"has no validation images; .* prepare it again, with: trainer prepare") as e:
        check_trainable(manifest, out)
    with pytest.raises(DataError, match="has no validation images"):  # before `--recipe auto` computes anything
        choose_recipe(Config(), out)
    command = shlex.split(str(e.value).rpartition("with: ")[2])
    assert run(*command[1:]).exit_code == 0
    check_trainable(Manifest.load(out), out)
    assert sizes(Manifest.load(out)) == {"train": 14, "validation": 2, "test": 4}
    assert Manifest.load(out).seed == 3


def test_advice_for_a_small_class_leads_to_a_dataset_that_can_be_trained_on(tmp_path: pathlib.Path) -> None:
    source, out = make(tmp_path / "source", all=10), tmp_path / "dataset"
    for i in range(2):
        (source / "old cat").mkdir(exist_ok=True)
        (source / "old cat" / f"{i}.png").write_bytes(image_bytes(100 + i))
    with pytest.raises(DataError, match=r"with --exclude 'old cat', or give --test 0$"):
        prepare_dataset(str(source), out)
    check_trainable(prepare_dataset(str(source), out, options=PrepareOptions(test_fraction=0)), out)
    assert evaluate_command(pathlib.Path("run"), str(out)) == "trainer evaluate run --split validation"
    (source / "old cat/0.png").unlink()
    with pytest.raises(DataError, match=r"with --exclude 'old cat'$"):  # --val 0 would not do
        prepare_dataset(str(source), tmp_path / "other")


def test_what_prepares_a_folder_beside_it_names_the_command_that_takes_the_options(tmp_path: pathlib.Path) -> None:
    source = make(tmp_path / "photos", all=10)
    (source / "cat/0.png").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(
        DataError, match=r"with --max-bad-fraction 0\.05; such options are taken by: trainer prepare"
    ) as e:
        prepare_beside(source, note=lambda _: None)
    command = shlex.split(str(e.value).partition("by: ")[2].partition(" OPTIONS")[0])
    assert command == ["trainer", "prepare", str(source), "--out", str(tmp_path / "photos-dataset")]
    assert run(*command[1:], "--max-bad-fraction", "0.05").exit_code == 0


# Files that are no images.

BAD = {
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "an HEIC photograph"),
    "phone.jpg": (b"\0\0\0\x18ftypheix\0\0\0\0mif1heic", "an HEIC photograph"),
    "live.mov": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", r"a video \(MP4 or QuickTime\)"),
    "empty page": (b"<html>", "an HTML page"),
    "copied.jpg": (bytes(4096), "nothing but zero bytes"),
    "raw.cr2": (b"II*\0\x10\0\0\0CR\2\0", "a TIFF or raw photograph"),
    "packed.jpg": (b"PK\3\4" + bytes(40), "a zip archive"),
    "scan.dcm": (bytes(128) + b"DICM" + bytes(20), "a DICOM image"),
}
IGNORED = {
    "notes.label": (b"cat 0.1 0.2 0.3 0.4\n", "a text"),
    "boxes.annotation": (b'<?xml version="1.0"?><annotation/>', "an XML file"),
    "points.data": (b"\x93NUMPY\1\0v\0", "a NumPy array"),
    "1 copy.jpg": (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60), "an AppleDouble file of a Mac"),
    "Thumbs (2).db": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(60), "a database of thumbnails"),
}


def test_a_file_that_is_no_image_is_named_by_its_kind_and_what_is_left_behind_is_not_bad(
    tmp_path: pathlib.Path,
) -> None:
    source, out = make(tmp_path / "source", all=10), tmp_path / "dataset"
    for name, (content, _) in {**BAD, **IGNORED}.items():
        (source / "cat" / name).write_bytes(content)
    (source / "dog/Thumbs.db").write_bytes(b"x")
    (source / "top.png").write_bytes(image_bytes(500))
    result = run("prepare", str(source), "--out", str(out), "--max-bad-fraction", "0.4")
    assert result.exit_code == 0, result.output
    bad = {
        json.loads(line)["path"]: json.loads(line)["reason"]
        for line in (out / "bad_files.jsonl").read_text().splitlines()
    }
    assert sorted(bad) == sorted(f"cat/{name}" for name in BAD)
    for name, (_, kind) in BAD.items():
        assert bad[f"cat/{name}"].startswith(f"not an image: {kind.replace(chr(92), '')}"), name
    manifest = Manifest.load(out)
    assert manifest.num_bad_files == {"not an image": len(BAD)}
    assert manifest.num_ignored["Thumbs.db"] == 1
    assert sum(manifest.num_ignored.values()) == 1 + len(IGNORED)
    assert all(any(kind in found for found in manifest.num_ignored) for _, kind in IGNORED.values())
    assert manifest.beside == ["top.png"]
    text = " ".join(result.stdout.split())
    assert "not taken 1 beside the class folders (top.png)" in text
    assert "ignored " in text
    assert "1 Thumbs.db" in text


def test_left_behind_files_do_not_make_a_source_too_bad(tmp_path: pathlib.Path) -> None:
    source = make(tmp_path / "source", all=10)
    for i in range(20):
        (source / "cat" / f"{i}.points").write_bytes(b"1 2 3\n")
        (source / "cat" / f"{i}.xml").write_bytes(b"<annotation/>")
    manifest = prepare_dataset(str(source), tmp_path / "out")
    assert manifest.num_ignored == {"*.xml": 20, "a text": 20}
    assert manifest.num_bad_files == {}


def test_a_path_of_windows_in_a_listing_is_missing_and_says_why(tmp_path: pathlib.Path) -> None:
    listing = as_listing(make(tmp_path / "source", train=10))
    with listing.open("a") as f:
        f.write("\nC:\\photos\\1.png,cat,train")
    manifest = prepare_dataset(str(listing), tmp_path / "out", options=PrepareOptions(max_bad_fraction=0.5))
    assert [bad.reason for bad in manifest.bad_files] == [
        "missing: a Windows path, which does not exist here; write it relative to the listing"
    ]
