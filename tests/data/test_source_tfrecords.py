"""Existing TFRecords: written by TensorFlow's own writer, read whole, and damaged in every place that matters."""

import gzip
import pathlib
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence

import pytest
import tensorflow as tf

from trainer.console.task_progress import show_nothing
from trainer.data.sources import Candidate, Source, open_source
from trainer.errors import DataError

pytestmark = pytest.mark.slow


def example(
    encoded: bytes | None = b"image",
    labels: Sequence[int] = (0,),
    texts: Sequence[str] = (),
    filename: str = "",
    weight: float | None = None,
) -> bytes:
    def of_bytes(*values: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    features = {"image/format": of_bytes(b"jpeg")}
    if encoded is not None:
        features["image/encoded"] = of_bytes(encoded)
    if labels:
        features["image/class/label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=labels))
    if texts:
        features["image/class/text"] = of_bytes(*(text.encode() for text in texts))
    if filename:
        features["image/filename"] = of_bytes(filename.encode())
    if weight is not None:
        features["image/weight"] = tf.train.Feature(float_list=tf.train.FloatList(value=[weight]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path: pathlib.Path, records: Sequence[bytes], compression: str = "") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in records:
            writer.write(record)
    return path


def staged(text: pathlib.Path | str, workspace: pathlib.Path) -> Source:
    source = open_source(f"tfrecords:{text}")
    source.stage(workspace, show_nothing)
    return source


def found(source: Source) -> dict[str, tuple[tuple[str, ...], str | None, bytes | str]]:
    answer = {}
    for c in source.candidates():
        assert c.filename not in answer
        try:
            content: bytes | str = source.read(
                Candidate(filename=c.filename, class_names=c.class_names, locator=c.locator)
            )
        except OSError as e:
            content = e.strerror
        answer[c.filename] = (c.class_names, c.split, content)
    return answer


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "records"


@pytest.fixture
def workspace(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "workspace"


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_records_come_with_their_labels_splits_and_bytes(
    folder: pathlib.Path, workspace: pathlib.Path, compression: str
) -> None:
    write(folder / "pets-train-00000-of-00002", [example(b"one", [1]), example(b"", [0])], compression)
    write(folder / "pets-train-00001-of-00002", [example(b"two", [1, 0])], compression)
    write(folder / "validation-00000-of-00001.tfrecord", [example(b"three" * 10**6, [2])], compression)
    write(folder / "test.tfrecords", [example(b"four", [1])], compression)
    (folder / "readme.txt").write_text("not a record")
    (folder / "train-00000-of-00002.idx").write_bytes(b"nor this")
    source = staged(folder, workspace)
    assert found(source) == {
        "pets-train-00000-of-00002#0": (("1",), None, b"one"),
        "pets-train-00000-of-00002#1": (("0",), None, b""),
        "pets-train-00001-of-00002#0": (("1", "0"), None, b"two"),
        "test.tfrecords#0": (("1",), "test", b"four"),
        "validation-00000-of-00001.tfrecord#0": (("2",), "validation", b"three" * 10**6),
    }
    assert (source.name, source.class_names) == ("records", ["0", "1", "2"])


def test_a_pattern_and_a_file_choose_among_the_files(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    for name in ("train-0.rec", "train-1.rec", "val-0.rec"):
        write(folder / name, [example(name.encode(), [3])])
    chosen = staged(folder / "train-*.rec", workspace)
    assert [content for *_, content in found(chosen).values()] == [b"train-0.rec", b"train-1.rec"]
    one = staged(folder / "val-0.rec", workspace)
    assert found(one) == {"val-0.rec#0": (("3",), "validation", b"val-0.rec")}
    for text in (folder, folder / "*.tfrecord", "", folder / "none"):
        with pytest.raises(DataError, match="names no TFRecord files; give a folder of files such as"):
            open_source(f"tfrecords:{text}")


def test_file_names_and_weights_are_taken_from_the_records(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    records = [example(filename="a/1.jpg", weight=2.5), example(filename="a/1.jpg"), example(weight=-1.0)]
    write(folder / "a.tfrecord", records)
    candidates = list(staged(folder, workspace).candidates())
    assert [(c.filename, c.weight) for c in candidates] == [
        ("a/1.jpg", 2.5),
        ("a.tfrecord#1", 1.0),
        ("a.tfrecord#2", 1),
    ]
    assert found(staged(folder, workspace))["a.tfrecord#2"][2] == (
        "its record has the weight [-1.0]; expected one number above 0"
    )


def test_classes_are_sorted_by_their_numbers(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    write(folder / "a.tfrecord", [example(labels=[label]) for label in (10, 2, 1)])
    assert staged(folder, workspace).class_names == ["1", "2", "10"]


def test_class_names_come_from_the_records(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    """Also for a record that leaves its own out."""
    records = [example(labels=[2], texts=["dog"]), example(labels=[1]), example(labels=[1, 2], texts=["cat", "dog"])]
    write(folder / "a.tfrecord", records)
    source = staged(folder, workspace)
    assert [names for names, *_ in found(source).values()] == [("dog",), ("cat",), ("cat", "dog")]
    assert source.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("lines", "labels", "expected"),
    [
        (["cat", "dog", "eel"], [0, 2], ["cat", "eel"]),  # only those that occur
        (["cat", "dog", "eel"], [1, 3], ["cat", "eel"]),  # 3 is one too many, unless they count from 1
        (["1:cat", "7: dog"], [1, 7], ["cat", "dog"]),
        (["7:dog", "1:cat"], [7], ["dog"]),
        (["cat", "dog", "", ""], [0, 1], ["cat", "dog"]),
    ],
)
def test_class_names_come_from_the_file_beside(
    folder: pathlib.Path, workspace: pathlib.Path, lines: list[str], labels: list[int], expected: list[str]
) -> None:
    write(folder / "a.tfrecord", [example(labels=[label], texts=[f"n0{label}"]) for label in labels])
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    assert staged(folder, workspace).class_names == expected


@pytest.mark.parametrize(("label", "text"), [(1, "dog"), (2, "dog")])
def test_names_in_the_records_tell_where_the_numbers_start(
    folder: pathlib.Path, workspace: pathlib.Path, label: int, text: str
) -> None:
    write(folder / "a.tfrecord", [example(labels=[label], texts=[text]), example(labels=[label + 1])])
    (folder / "labels.txt").write_text("cat\ndog\neel\nfox\n")
    assert staged(folder, workspace).class_names == ["dog", "eel"]


@pytest.mark.parametrize(
    ("names", "records", "message"),
    [
        (
            "cat\ndog\neel\n",
            [[1], [2]],
            "go from 1 to 2, and labels.txt has 3 names: it is unclear",
        ),
        ("cat\ndog\n", [[0], [2]], "has no name for the label 2"),
        ("cat\ndog\n", [[5]], "has no name for the label 5"),
        ("1:cat\n1:dog\n", [[1]], "gives a number two names"),
        ("cat\ncat\n", [[0], [1]], "two labels of .* are called 'cat'"),
        ("\xff", [[0]], "is not UTF-8 text"),
    ],
)
def test_class_names_that_cannot_be_told_are_an_error(
    folder: pathlib.Path, workspace: pathlib.Path, names: str, records: list[list[int]], message: str
) -> None:
    write(folder / "a.tfrecord", [example(labels=labels) for labels in records])
    (folder / "labels.txt").write_bytes(names.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        staged(folder, workspace)


def test_one_label_with_two_names_is_an_error(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    write(folder / "a.tfrecord", [example(texts=["cat"]), example(texts=["dog"])])
    with pytest.raises(DataError, match=r"the label 0 of .* is called 'cat' and 'dog' by image/class/text"):
        staged(folder, workspace)


def test_records_without_an_image_or_a_label_are_bad_files(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    records = [
        example(b"good", [4]),
        example(None),
        example(labels=[]),
        example(labels=[-1]),
        b"\xff\xff\xff no protocol buffer",
        example(labels=[1, 2], texts=["one"]),
        b"",
    ]
    write(folder / "a.tfrecord", records)
    assert [content for *_, content in found(staged(folder, workspace)).values()] == [
        b"good",
        "its record has no image/encoded; it holds image/class/label, image/format",
        "its record has no image/class/label",
        "its record has the label -1",
        "its record is not a tf.train.Example",
        "its record has 2 labels and 1 names of classes",
        "its record has no image/encoded; it holds nothing",
    ]
    write(folder / "a.tfrecord", [example(labels=[])])
    with pytest.raises(DataError, match=r"no record of .* has an image and a label; expected image/encoded and"):
        staged(folder, workspace)


def test_what_is_staged_is_used_again_and_only_for_the_same_files(
    folder: pathlib.Path, workspace: pathlib.Path
) -> None:
    write(folder / "a.tfrecord", [example(b"one"), example(b"two", [1])], "GZIP")
    first = found(staged(folder, workspace))
    before = {p.name: p.stat().st_mtime_ns for p in workspace.iterdir()}
    assert found(staged(folder, workspace)) == first
    assert {p.name: p.stat().st_mtime_ns for p in workspace.iterdir()} == before
    (folder / "labels.txt").write_text("cat\ndog\n")
    assert staged(folder, workspace).class_names == ["cat", "dog"]


# Damage. A record is a length of 8 bytes, its checksum of 4, the payload, and its checksum of 4.


def flip(path: pathlib.Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["payload", "checksum"])
def test_a_flipped_bit_in_a_payload_is_one_bad_file(folder: pathlib.Path, workspace: pathlib.Path, place: str) -> None:
    records = [example(b"image %d" % i, [i]) for i in range(20)]
    path = write(folder / "file.tfrecord", records)
    start = sum(16 + len(record) for record in records[:17])
    flip(path, start + 12 + (30 if place == "payload" else len(records[17]) + 2))
    answer = found(staged(folder, workspace))
    assert len(answer) == 20
    assert answer["file.tfrecord#17"] == (("0",), None, "its record fails its checksum")
    assert [content for *_, content in answer.values() if isinstance(content, bytes)] == [
        b"image %d" % i for i in range(20) if i != 17
    ]


@pytest.mark.parametrize("byte", [0, 6, 7, 9])
def test_a_flipped_bit_in_a_length_names_the_file_and_the_byte(
    folder: pathlib.Path, workspace: pathlib.Path, byte: int
) -> None:
    records = [example(b"image %d" % i) for i in range(5)]
    path = write(folder / "file.tfrecord", records)
    start = sum(16 + len(record) for record in records[:3])
    flip(path, start + byte)
    message = rf"file\.tfrecord at byte {start} \(record 3\) is not a TFRecord, or is damaged: the length of the record"
    with pytest.raises(DataError, match=message):
        staged(folder, workspace)
    assert list(workspace.iterdir()) == []


def masked_crc(content: bytes) -> int:
    """Of what TensorFlow writes: the checksum of a payload stands behind it."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = write(pathlib.Path(directory) / "one", [content])
        return struct.unpack("<I", path.read_bytes()[-4:])[0]


def header(length: int) -> bytes:
    return struct.pack("<Q", length) + struct.pack("<I", masked_crc(struct.pack("<Q", length)))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("length", "message"),
    [
        (2**62, "declares 4,611,686,018,427,387,904 bytes; the limit for an image is 537,919,488"),
        (2**28, "goes on to byte|is cut off"),
    ],
)
def test_a_length_that_lies_is_not_allocated(
    folder: pathlib.Path, workspace: pathlib.Path, length: int, message: str, compressed: bool
) -> None:
    content = header(length) + b"x" * 1000
    folder.mkdir()
    (folder / "file.tfrecord").write_bytes(gzip.compress(content) if compressed else content)
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        staged(folder, workspace)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_gzipped_file_that_expands_without_bound_is_stopped(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    """1.5 GiB in 1.5 MB, record by record."""
    one = header(2**26) + bytes(2**26) + struct.pack("<I", masked_crc(bytes(2**26)))
    folder.mkdir()
    with gzip.open(folder / "file.tfrecord", "wb", 1) as f:
        for _ in range(24):
            f.write(one)
    with pytest.raises(DataError, match=r"at byte 1,006,632,960|at byte [\d,]+ .* goes on to byte 1,07"):
        staged(folder, workspace)
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_a_file_that_is_cut_off_is_an_error(folder: pathlib.Path, workspace: pathlib.Path, compression: str) -> None:
    path = write(folder / "file.tfrecord", [example(b"one"), example(b"two" * 100)], compression)
    whole = path.read_bytes()
    first = 16 + len(example(b"one"))
    for cut in (first + 5, first + 20, len(whole) - 1) if not compression else (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"file\.tfrecord.*(cut off|goes on to byte)"):
            staged(folder, workspace)


def test_a_file_that_is_no_tfrecord_says_so(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    folder.mkdir()
    (folder / "file.tfrecord").write_bytes(b"\x89PNG\r\n\x1a\n" * 10)
    with pytest.raises(DataError, match=r"at byte 0 .* is not a TFRecord"):
        staged(folder, workspace)


PEAK = r"""
import pathlib, re, sys
from trainer.data.sources import open_source
from trainer.console.task_progress import show_nothing
source = open_source(f"tfrecords:{sys.argv[1]}")
source.stage(pathlib.Path(sys.argv[2]), show_nothing)
count = sum(1 for _ in source.candidates())
print(count, re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_records(folder: pathlib.Path, workspace: pathlib.Path) -> None:
    peaks = []
    for count in (100, 20_000):
        write(folder / f"{count}.rec", [example(b"x" * 2000, [i % 10], filename=f"{i:0100}") for i in range(count)])
        command = [sys.executable, "-c", PEAK, str(folder / f"{count}.rec"), str(workspace)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        num_found, peak = map(int, done.stdout.split())
        assert num_found == count
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 10_000  # kB; the records are 44,000
