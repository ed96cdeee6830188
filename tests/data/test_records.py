"""Shards: readable by TensorFlow and by offset, checked against the manifest, and named when they are damaged."""

import pathlib
import struct

import pytest
import tensorflow as tf
from small_shards import example, write_dataset

from trainer.data.dataset import records
from trainer.data.dataset.checks import check_splits
from trainer.data.dataset.manifest import Manifest, Split
from trainer.data.dataset.split_reader import SplitReader, iterate_examples
from trainer.data.dataset.verify import verify_dataset
from trainer.errors import DataError, StorageError


@pytest.fixture
def dataset(tmp_path: pathlib.Path) -> tuple[pathlib.Path, Manifest]:
    """Examples 0 to 7 in three shards."""
    return tmp_path, write_dataset(tmp_path)


def test_a_shard_is_a_tfrecord_file_with_valid_checksums(dataset: tuple[pathlib.Path, Manifest]) -> None:
    directory, manifest = dataset
    paths = [str(directory / shard.file_name) for shard in manifest.splits["train"].shards]
    payloads = [payload.numpy() for payload in tf.data.TFRecordDataset(paths)]
    assert [records.Example.from_payload(payload) for payload in payloads] == [example(i) for i in range(8)]


def test_the_index_holds_offset_length_label_and_weight_of_every_record(dataset: tuple[pathlib.Path, Manifest]) -> None:
    directory, manifest = dataset
    (first, *_) = manifest.splits["train"].shards
    content = (directory / first.file_name).read_bytes()
    index = (directory / first.index_file_name).read_bytes()
    assert len(content) == first.num_bytes
    entries = list(struct.iter_unpack("<QQif", index))
    assert [content[offset : offset + length] for offset, length, _, _ in entries] == [
        example(i).to_payload() for i in range(3)
    ]
    assert [(label, weight) for _, _, label, weight in entries] == [(i % 3, 1.0) for i in range(3)]


def test_parsing_in_the_graph_gives_images_and_labels(dataset: tuple[pathlib.Path, Manifest]) -> None:
    payloads = [example(i).to_payload() for i in (5, 0, 2)]
    encoded, labels, _ = tf.function(records.parse_examples)(tf.constant(payloads))
    assert encoded.numpy().tolist() == [example(i).encoded for i in (5, 0, 2)]
    assert labels.dtype == tf.int64
    assert labels.numpy().tolist() == [2, 0, 2]


def test_a_file_name_that_is_not_utf8_survives(tmp_path: pathlib.Path) -> None:
    odd = records.Example(encoded=b"", labels=(0,), format="png", filename="caf\udce9.png", height=1, width=1)
    assert records.Example.from_payload(odd.to_payload()) == odd


def test_sound_shards_pass_verification(dataset: tuple[pathlib.Path, Manifest]) -> None:
    check_splits(*dataset, ["train"])
    verification = verify_dataset(dataset[0])
    assert verification.passed
    assert (verification.num_files, verification.num_records) == (7, 8)


@pytest.mark.parametrize("suffix", [".tfrecord", ".idx"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [("flip", "fails its checksum"), ("cut", "is truncated"), ("grow", "is too long"), ("remove", "is missing")],
)
def test_a_damaged_shard_is_named_with_the_fix(
    dataset: tuple[pathlib.Path, Manifest], suffix: str, damage: str, problem: str
) -> None:
    directory, manifest = dataset
    path = directory / f"train-00001-of-00003{suffix}"
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flip":
        content[len(content) // 2] ^= 1
    if damage != "remove":
        path.write_bytes({"cut": content[:-1], "grow": content + b"\0"}.get(damage, content))
    if (suffix, damage) == (".tfrecord", "flip"):
        check_splits(directory, manifest, ["train"])  # reads no shard
    else:
        for open_ in (lambda: check_splits(directory, manifest, ["train"]), lambda: SplitReader(*dataset, "train")):
            with pytest.raises(DataError, match=f"{path.name} {problem}.*prepare the dataset again"):
                open_()
    verification = verify_dataset(directory)
    assert any(d.file == path.name and d.problem.startswith(problem) for d in verification.damages)
    with pytest.raises(StorageError, match=f"{path.name} is .*|{path.name} {problem}"):
        verification.raise_on_failure()


def test_an_empty_shard_is_written_and_read(tmp_path: pathlib.Path) -> None:
    with records.ShardWriter(tmp_path, "test-00000-of-00001") as writer:
        pass
    split = Split(num_examples=0, class_counts=[0], shards=[writer.shard])
    manifest = Manifest(name="n", source="s", class_names=["a"], seed=0, splits={"test": split})
    check_splits(tmp_path, manifest, ["test"])
    assert list(iterate_examples(tmp_path, manifest, "test")) == []
