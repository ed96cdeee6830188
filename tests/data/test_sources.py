"""What each kind of source finds, and the sentence it answers with where it finds nothing usable."""

import gzip
import io
import os
import pathlib
import struct

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from trainer.data.sources import SOURCE_USAGES, Candidate, SourceOptions, open_source
from trainer.data.sources.fashion_mnist import DEBIAN_FOLDER, read_idx
from trainer.errors import DataError


def write(path: pathlib.Path, content: bytes = b"x") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(text: str | pathlib.Path) -> dict[str, tuple[str, str | None]]:
    return {c.filename: (*c.class_names, c.split) for c in open_source(str(text)).candidates()}


# A folder per class.


def test_every_file_below_a_class_folder_that_may_be_an_image_is_a_candidate(tmp_path: pathlib.Path) -> None:
    for name in (
        "cat/1.jpg",
        "cat/deep/er/2",
        "dog/3.jpg.download",
        "dog/.hidden",
        ".git/x",
        "cat/.thumbs/3.jpg",
        "top.jpg",
    ):
        write(tmp_path / name)
    assert found(tmp_path) == {
        "cat/1.jpg": ("cat", None),
        "cat/deep/er/2": ("cat", None),
        "dog/3.jpg.download": ("dog", None),
    }
    assert open_source(str(tmp_path)).class_names == ["cat", "dog"]


def test_a_class_folder_without_files_still_counts_as_a_class(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "cat/1.jpg")
    (tmp_path / "dog").mkdir()
    assert open_source(str(tmp_path)).class_names == ["cat", "dog"]


def test_split_folders_keep_their_splits(tmp_path: pathlib.Path) -> None:
    for name in ("train/cat/1", "train/dog/1", "val/cat/2", "val/dog/2", "test/cat/3", "test/dog/3"):
        write(tmp_path / name)
    assert found(tmp_path) == {
        "train/cat/1": ("cat", None),
        "train/dog/1": ("dog", None),
        "val/cat/2": ("cat", "validation"),
        "val/dog/2": ("dog", "validation"),
        "test/cat/3": ("cat", "test"),
        "test/dog/3": ("dog", "test"),
    }


def test_links_are_followed_and_a_loop_is_an_error(tmp_path: pathlib.Path) -> None:
    elsewhere = write(tmp_path / "elsewhere/1.jpg").parent
    source = tmp_path / "source"
    source.mkdir()
    (source / "cat").symlink_to(elsewhere)
    assert found(source) == {"cat/1.jpg": ("cat", None)}
    (elsewhere / "again").symlink_to(elsewhere)
    with pytest.raises(DataError, match="again is a link to a folder that contains it"):
        found(source)


def test_folders_without_end_are_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "cat" / "/".join(["d"] * 98) / "1.jpg")
    assert len(found(tmp_path)) == 1
    write(tmp_path / "cat" / "/".join(["d"] * 100) / "1.jpg")
    with pytest.raises(DataError, match="lies 100 folders deep"):
        found(tmp_path)


def test_what_is_no_regular_file_is_not_read(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "cat/1.jpg", b"content")
    os.mkfifo(tmp_path / "cat/pipe")
    (tmp_path / "cat/broken").symlink_to("nowhere")
    source = open_source(str(tmp_path))
    assert source.read(Candidate(filename="cat/1.jpg", class_names=("cat",))) == b"content"
    with pytest.raises(OSError, match="not a regular file"):  # and does not wait for a writer
        source.read(Candidate(filename="cat/pipe", class_names=("cat",)))
    with pytest.raises(FileNotFoundError):
        source.read(Candidate(filename="cat/broken", class_names=("cat",)))


def test_a_huge_file_is_not_read_into_memory(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "cat/1.jpg")
    os.truncate(path, 2**40)  # takes no space
    with pytest.raises(OSError, match="over the limit"):
        open_source(str(tmp_path)).read(Candidate(filename="cat/1.jpg", class_names=("cat",)))


@pytest.mark.parametrize(
    ("files", "message"),
    [((), "is empty; expected one folder of images per class"), (("a.jpg", "b.jpg"), "holds 2 files and no folders")],
)
def test_a_folder_without_class_folders_says_what_was_expected(
    tmp_path: pathlib.Path, files: tuple[str, ...], message: str
) -> None:
    for name in files:
        write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path))


def test_a_file_that_is_no_listing_says_what_was_expected(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"is a file; give a folder .* or a \.csv or \.jsonl file"):
        open_source(str(write(tmp_path / "photos.parquet")))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("digitz", "did you mean 'digits'"),
        ("flower", "did you mean 'flowers'"),
        (
            "/no/where",
            "give digits; fashion.*; flowers, caltech101, cats_vs_dogs; tfds:NAME.*; a folder with one folder",
        ),
    ],
)
def test_an_unknown_source_names_the_nearest_or_all(text: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        open_source(text)


@pytest.mark.parametrize("text", ["digits", "flowers", "tfds:mnist"])
def test_an_option_that_means_nothing_to_a_source_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"--group-column patient is for a \.csv or \.jsonl file"):
        open_source(text, SourceOptions(group_column="patient"))
    with pytest.raises(DataError, match="--sha256 is for an archive by path or address"):
        open_source(text, SourceOptions(sha256="0" * 64))


def test_every_kind_of_source_says_how_it_is_written() -> None:
    usages = dict(SOURCE_USAGES)
    assert len(usages) == 9
    assert all(usage and meaning for usage, meaning in SOURCE_USAGES)
    assert "229 MB to download, CC BY 2.0" in usages["flowers, caltech101, cats_vs_dogs"]


# Listings: see also test_source_listing.py.


# Built-in sources.


def test_digits_are_1797_scans_of_ten_classes() -> None:
    source = open_source("digits")
    candidates = list(source.candidates())
    assert len(candidates) == 1797
    assert sorted({c.class_names[0] for c in candidates}) == list(source.class_names or ())
    image = Image.open(io.BytesIO(source.read(candidates[7])))
    scan = sklearn.datasets.load_digits().images[7]
    assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))
    assert np.array_equal(np.asarray(image), np.rint(scan * 255 / 16))
    assert np.asarray(image).max() == 255


def idx(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def idx_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        write(tmp_path / f"{part}-images-idx3-ubyte", idx(images))
        write(tmp_path / f"{part}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    return tmp_path


def test_fashion_mnist_is_read_from_a_folder_gzipped_or_not(idx_folder: pathlib.Path) -> None:
    source = open_source(f"fashion-mnist:{idx_folder}")
    candidates = list(source.candidates())
    assert [c.split for c in candidates] == [None] * 40 + ["test"] * 20
    assert candidates[41] == Candidate(filename="t10k/00001.png", class_names=("Trouser",), split="test")
    images = read_idx(idx_folder / "t10k-images-idx3-ubyte", num_dimensions=3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read(candidates[41])))), images[1])


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_of_debian_has_70000_images() -> None:
    candidates = list(open_source("fashion-mnist").candidates())
    assert [sum(c.split == split for c in candidates) for split in (None, "test")] == [60_000, 10_000]


def test_missing_idx_files_say_how_to_get_them(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz; give the folder with the four IDX files"):
        open_source(f"fashion-mnist:{tmp_path}")
    monkeypatch.setattr("trainer.data.sources.fashion_mnist.DEBIAN_FOLDER", tmp_path)
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        open_source("fashion-mnist")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing; expected an IDX file"),
        (b"\0\0\x0d\x03" + bytes(12), "begins with 00 00 0d 03"),
        (idx(np.zeros([2, 2], np.uint8)), "in 3 dimensions"),
        (idx(np.zeros([2, 2, 2], np.uint8))[:-1], r"holds 7 values where its header says \[2, 2, 2\]"),
        (gzip.compress(idx(np.zeros([2, 2, 2], np.uint8)))[:-9], "is not a complete gzip file"),
        (b"\x1f\x8bnonsense", "is not a complete gzip file"),
    ],
    # A name of its own for each: pytest would make one of the bytes, and gzip's hold the time of day,
    # so that two workers that collect in different seconds would disagree.
    ids=["empty", "wrong-type", "too-few-dimensions", "truncated", "truncated-gzip", "not-gzip"],
)
def test_a_damaged_idx_file_is_named(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_idx(write(tmp_path / "images", content), num_dimensions=3)


def test_images_and_labels_that_do_not_match_are_refused(idx_folder: pathlib.Path) -> None:
    write(idx_folder / "train-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(39, np.uint8))))
    with pytest.raises(DataError, match="40 images and 39 labels in its train files"):
        found(f"fashion-mnist:{idx_folder}")
    write(idx_folder / "train-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(40, 10, np.uint8))))
    with pytest.raises(DataError, match="go up to 10; expected 0 to 9"):
        found(f"fashion-mnist:{idx_folder}")
