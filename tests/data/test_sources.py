"""What each kind of source finds, and the sentence it answers with where it finds nothing usable."""

import gzip
import io
import os
import pathlib
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from trainer.data.sources import Candidate, open_source
from trainer.data.sources.fashion_mnist import DEBIAN_FOLDER, read_idx
from trainer.errors import DataError


def write(path: pathlib.Path, content: bytes = b"x") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(text: str | pathlib.Path) -> dict[str, tuple[str, str | None]]:
    return {c.filename: (*c.class_names, c.split) for c in open_source(str(text)).candidates()}


# A folder per class.


def test_every_visible_file_below_a_class_folder_is_a_candidate(tmp_path: pathlib.Path) -> None:
    for name in (
        "cat/1.jpg",
        "cat/deep/er/2",
        "dog/README.txt",
        "dog/.hidden",
        ".git/x",
        "cat/.thumbs/3.jpg",
        "top.jpg",
    ):
        write(tmp_path / name)
    assert found(tmp_path) == {
        "cat/1.jpg": ("cat", None),
        "cat/deep/er/2": ("cat", None),
        "dog/README.txt": ("dog", None),
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
    with pytest.raises(DataError, match="again is a link to a folder that it lies in"):
        found(source)


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


@pytest.mark.parametrize(("text", "hint"), [("digitz", "did you mean 'digits'"), ("/no/where", "give digits; fashion")])
def test_an_unknown_source_names_the_nearest_or_all(text: str, hint: str) -> None:
    with pytest.raises(DataError, match=hint):
        open_source(text)


# Listings.


def test_csv_and_jsonl_give_the_same_candidates(tmp_path: pathlib.Path) -> None:
    # A byte order mark, spaces, Windows line ends, other columns and quotes, as spreadsheets write them.
    write(tmp_path / "l.csv", '\ufefflabel, path,note\r\n7,a/1.jpg,x\r\n"big, dog",2.jpg,y\r\n'.encode())
    write(tmp_path / "l.jsonl", b'{"path": "a/1.jpg", "label": 7}\n\n{"path": "2.jpg", "label": "big, dog", "n": 1}\n')
    expected = {"a/1.jpg": ("7", None), "2.jpg": ("big, dog", None)}
    assert found(tmp_path / "l.csv") == found(tmp_path / "l.jsonl") == expected


def test_paths_of_a_listing_are_relative_to_it_or_absolute(tmp_path: pathlib.Path) -> None:
    far = write(tmp_path / "far/2.jpg", b"two")
    write(tmp_path / "here/1.jpg", b"one")
    listing = write(tmp_path / "here/l.csv", f"path,label\n1.jpg,a\n{far},b\n../far/2.jpg,b\n".encode())
    source = open_source(str(listing))
    assert [source.read(candidate) for candidate in source.candidates()] == [b"one", b"two", b"two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "path,class\n1.jpg,a\n", "columns path, class; expected path and label.*add label"),
        ("l.csv", "", r"columns \(none\); expected path and label"),
        ("l.csv", "path,label\n1.jpg\n", "line 2 .* has None for 'label'"),
        ("l.csv", "path,label\n,a\n", "line 2 .* has '' for 'path'"),
        ("l.csv", 'path,label\n"1.jpg,a\n', "is not CSV"),
        ("l.csv", "path,label\n1.jpg,a\n./1.jpg,b\n", "line 3 .* names './1.jpg' again, after line 2"),
        ("l.jsonl", "{}\n", "line 1 .* has no path and no label"),
        ("l.jsonl", "[1]\n", "line 1 .* is not an object"),
        ("l.jsonl", '{"path": "1"\n', "line 1 .* is not JSON"),
        ("l.jsonl", '{"path": "1", "label": true}\n', "line 1 .* has True for 'label'"),
        ("l.jsonl", '{"path": 1, "label": "a"}\n', "line 1 .* has 1 for 'path'"),
        ("l.jsonl", '{"path": "\\ud800", "label": "a"}\n', "line 1 .* for 'path'; expected text"),
        ("l.jsonl", '{"path": "a\\u0000b", "label": "a"}\n', "line 1 .* for 'path'; expected text"),
    ],
)
def test_a_wrong_line_of_a_listing_is_named(tmp_path: pathlib.Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        found(write(tmp_path / name, content.encode()))


def test_a_listing_that_is_not_text_or_not_there_says_so(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="is not UTF-8 text"):
        found(write(tmp_path / "l.csv", b"path,label\n\xff\xfe,a\n"))
    with pytest.raises(DataError, match="does not exist"):
        found(tmp_path / "none.csv")


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None)
@hypothesis.given(
    content=st.one_of(
        st.binary(max_size=60), st.text(max_size=60).map(lambda t: ("path,label\n" + t).encode("utf-8", "replace"))
    ),
    suffix=st.sampled_from(["csv", "jsonl"]),
)
def test_any_bytes_are_a_listing_or_a_clear_error(tmp_path: pathlib.Path, content: bytes, suffix: str) -> None:
    path = write(tmp_path / f"l.{suffix}", content)
    try:
        candidates = list(open_source(str(path)).candidates())
    except DataError as e:
        assert path.name in str(e)
    else:
        assert all(c.filename and c.class_names for c in candidates)


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
        (gzip.compress(idx(np.zeros([2, 2, 2], np.uint8)))[:-9], "is not a whole gzip file"),
        (b"\x1f\x8bnonsense", "is not a whole gzip file"),
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
