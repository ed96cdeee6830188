"""Folders and archives as people have them: splits of any name, what systems leave behind, and half of a layout."""

import collections
import pathlib
import tarfile
import zipfile
from typing import Any

import pytest

from trainer.console.task_progress import show_nothing
from trainer.data.sources import Source, SourceOptions, open_source
from trainer.data.sources.split_names import find_split
from trainer.errors import DataError


def make(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def opened(folder: pathlib.Path, kind: str, exclude: tuple[str, ...] = ()) -> Source:
    """The same files as a folder, a zip or a compressed tar."""
    path = folder
    if kind == "zip":
        path = folder.with_name("packed.zip")
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder))
    elif kind == "tgz":
        path = folder.with_name("packed.tgz")
        with tarfile.open(path, "w:gz") as archive:
            for file in sorted(folder.rglob("*")):
                archive.add(file, file.relative_to(folder), recursive=False)
    source = open_source(str(path), SourceOptions(exclude=exclude))
    source.stage(folder.with_name(f"staged-{kind}"), show_nothing)
    return source


def found(source: Source) -> dict[str, tuple[Any, ...]]:
    return {c.filename: (*c.class_names, c.split) for c in source.candidates()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "TRAIN", "train_set", "trainset", "TrainingSet", "tr", "trn")
        ),
        *(
            (name, "train")
            for name in ("train-images", "images_train", "train data", "train2017", "Train.Split", "01_train")
        ),
        *((name, "validation") for name in ("val", "valid", "Validation", "dev", "devset", "val_set", "ValImages")),
        *(
            (name, "test")
            for name in ("test", "testing", "test_set", "TestSet", "eval", "evaluation_data", "tst", "test1")
        ),
        *((name, None) for name in ("trainer", "contest", "invalid", "train station", "test tube", "set", "valve", "")),
    ],
)
def test_names_of_splits_in_use_are_known(name: str, split: str | None) -> None:
    assert find_split(name) == split


KINDS = ["folder", "zip", "tgz"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("train", "test"), [("train_set", "test_set"), ("Training", "Testing"), ("seg_train", "seg_test"), ("tr", "eval")]
)
def test_split_folders_of_any_name_are_splits(tmp_path: pathlib.Path, kind: str, train: str, test: str) -> None:
    folder = make(tmp_path / "set", *(f"{part}/{name}/1.jpg" for part in (train, test) for name in ("cat", "dog")))
    source = opened(folder, kind)
    assert found(source) == {
        f"{train}/cat/1.jpg": ("cat", None),
        f"{train}/dog/1.jpg": ("dog", None),
        f"{test}/cat/1.jpg": ("cat", "test"),
        f"{test}/dog/1.jpg": ("dog", "test"),
    }
    assert source.class_names == ["cat", "dog"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("val/cat/1", "val/dog/1", "test/cat/1", "test/dog/1"),
            r"holds test and val and no folder of training images",
        ),
        (
            ("train/cat/1", "train/dog/1", "samples/1"),
            r"holds train, named like a split, beside samples, which is not; .* leave it out with --exclude samples",
        ),
        (
            ("train/cat/1", "val/cat/1", "lost & found/x/1"),
            r"train and val, .* beside lost & found, .* --exclude 'lost & found'",
        ),
        (("seg_train/a/1", "seg_test/a/1", "seg_pred/1"), r"beside seg_pred"),
        (
            ("train/cat/1", "train_set/dog/1", "test/cat/1"),
            r"holds train and train_set, which all name the train split",
        ),
        (("train/1", "test/1", "labels/1"), r"beside labels"),
        (("train1/cat/1", "train2/dog/1", "test/cat/1"), r"holds train1 and train2, which all name the train split"),
        (
            ("train/cat.1", "train/dog.1", "test1/1"),
            r"hold no folders; expected one folder of images per class in each",
        ),
    ],
)
def test_half_a_split_layout_is_an_error_that_names_the_odd_folder(
    tmp_path: pathlib.Path, kind: str, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        opened(make(tmp_path / "set", *names), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_seen_once_the_odd_folder_is_excluded(tmp_path: pathlib.Path, kind: str) -> None:
    names = [f"{part}/{name}/1.jpg" for part in ("train", "val") for name in ("cat", "dog")]
    source = opened(make(tmp_path / "set", *names, "samples/x.jpg", "odd ones/y/z.jpg"), kind, ("samples", "odd ones"))
    splits = collections.Counter(split for *_, split in found(source).values())
    assert splits == {None: 4, "validation": 2}
    # The excluded are given for the count of what is left out.
    assert source.class_names == ["cat", "dog", "odd ones", "samples"]
    assert found(source)["samples/x.jpg"] == ("samples", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_may_have_the_name_of_a_split(tmp_path: pathlib.Path, kind: str) -> None:
    vehicles = make(tmp_path / "vehicles", "bus/1.jpg", "car/1.jpg", "train/1.jpg", "train/steam/2.jpg")
    assert opened(vehicles, kind).class_names == ["bus", "car", "train"]
    parts = make(tmp_path / "more/parts", "valid/1.jpg", "invalid/1.jpg")
    assert opened(parts, kind).class_names == ["invalid", "valid"]


def test_splits_whose_folders_lie_one_deeper_each_are_seen_through(tmp_path: pathlib.Path) -> None:
    names = [f"{part}/{part}/{name}/1.jpg" for part in ("seg_train", "seg_test") for name in ("sea", "street")]
    assert found(opened(make(tmp_path / "set", *names), "folder"))["seg_test/seg_test/sea/1.jpg"] == ("sea", "test")


def test_the_folder_that_was_meant_is_named_where_one_lies_around_the_classes(tmp_path: pathlib.Path) -> None:
    folder = make(tmp_path / "set", "data/images/cat/1.jpg", "data/images/dog/1.jpg", "README.md", "__MACOSX/data/._x")
    meant = folder / "data/images"
    with pytest.raises(DataError, match=rf"2 folders \(cat, dog\) lie in {meant}: give that instead"):
        opened(folder, "folder")
    assert opened(meant, "folder").class_names == ["cat", "dog"]  # the advice works
    assert opened(folder, "zip").class_names == ["cat", "dog"]  # an archive has one around all, mostly


LEFT_BEHIND = {
    "cat/Thumbs.db": "Thumbs.db",
    "cat/desktop.ini": "desktop.ini",
    "cat/.DS_Store": ".DS_Store",
    "cat/._1.jpg": "._* of a Mac",
    "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg": "@eaDir",
    "__MACOSX/cat/._1.jpg": "__MACOSX",
    "lost+found/#123": "lost+found",
    "cat/.ipynb_checkpoints/1-checkpoint.jpg": ".ipynb_checkpoints",
    ".git/objects/aa": ".git",
    "cat/1.xmp": "*.xmp",
    "cat/IMG_1.AAE": "*.aae",
    "cat/MVI_1.THM": "*.thm",
    "cat/1.xml": "*.xml",
    "dog/labels.json": "*.json",
    "dog/boxes.npy": "*.npy",
    "README": "README",
    "LICENSE.txt": "*.txt",
    "$RECYCLE.BIN/1.jpg": "$RECYCLE.BIN",
    "System Volume Information/1.jpg": "System Volume Information",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_systems_leave_behind_is_no_class_and_no_image_and_is_counted(tmp_path: pathlib.Path, kind: str) -> None:
    folder = make(tmp_path / "set", "cat/1.jpg", "dog/2.JPG", "dog/noextension", "stray.jpg", *LEFT_BEHIND)
    source = opened(folder, kind)
    assert source.class_names == ["cat", "dog"]
    assert sorted(found(source)) == ["cat/1.jpg", "dog/2.JPG", "dog/noextension"]
    assert source.passed_over.num_ignored == collections.Counter(LEFT_BEHIND.values())
    assert (source.passed_over.num_beside, source.passed_over.beside) == (1, ["stray.jpg"])
    assert sorted(found(source)) == ["cat/1.jpg", "dog/2.JPG", "dog/noextension"]
    assert source.passed_over.num_ignored.total() == len(LEFT_BEHIND)  # not twice


def test_images_beside_the_classes_of_a_split_are_counted_too(tmp_path: pathlib.Path) -> None:
    folder = make(tmp_path / "set", "train/a/1.jpg", "train/b/1.jpg", "train/x.jpg", "test/a/1.jpg", "test/b/1.jpg")
    source = opened(folder, "folder")
    assert len(found(source)) == 4
    assert source.passed_over.beside == ["train/x.jpg"]


def test_back_slashes_of_a_windows_zip_divide_folders(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("set\\cat\\1.jpg", "set\\dog\\2.jpg"):
            member = zipfile.ZipInfo(name)
            member.create_system = 0
            archive.writestr(member, name)
    source = open_source(str(path))
    source.stage(tmp_path / "staged", show_nothing)
    assert found(source) == {"set/cat/1.jpg": ("cat", None), "set/dog/2.jpg": ("dog", None)}
    assert [source.read(candidate) for candidate in source.candidates()] == [rb"set\cat\1.jpg", rb"set\dog\2.jpg"]
