"""Shards: readable by TensorFlow and by offset, checked against the manifest, and named when they are damaged."""

import concurrent.futures
import pathlib
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from trainer.data import records
from trainer.data.manifest import Manifest, Split
from trainer.errors import DataError

SHARD_SIZES = (3, 1, 4)


def example(index: int) -> records.Example:
    return records.Example(
        encoded=b"image %d" % index * (index + 1),
        labels=(index % 3,),
        format="png",
        filename=f"katze/straße {index}.png",
        height=index,
        width=7,
    )


@pytest.fixture
def dataset(tmp_path: pathlib.Path) -> tuple[pathlib.Path, Manifest]:
    """Examples 0 to 7 in three shards."""
    numbers = iter(range(sum(SHARD_SIZES)))
    shards = []
    for i, size in enumerate(SHARD_SIZES):
        with records.ShardWriter(tmp_path, f"train-{i:05}-of-00003") as writer:
            for _ in range(size):
                writer.write(example(next(numbers)))
        shards.append(writer.shard)
    split = Split(num_examples=8, class_counts=[3, 3, 2], shards=shards)
    manifest = Manifest(name="n", source="s", class_names=["a", "b", "c"], seed=0, splits={"train": split})
    return tmp_path, manifest


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


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None)
@hypothesis.given(indices=st.lists(st.integers(0, 7), max_size=20))
def test_any_examples_are_read_in_the_order_asked_for(
    dataset: tuple[pathlib.Path, Manifest], indices: list[int]
) -> None:
    with records.SplitReader(*dataset, "train") as reader:
        payloads = reader.read(np.array(indices, np.int64))
    assert payloads == [example(i).to_payload() for i in indices]


def test_one_reader_serves_many_threads(dataset: tuple[pathlib.Path, Manifest]) -> None:
    with records.SplitReader(*dataset, "train") as reader, concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: reader.read(np.array([i % 8]))[0], range(400)))
    assert found == [example(i % 8).to_payload() for i in range(400)]


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_out_of_range_is_refused(dataset: tuple[pathlib.Path, Manifest], index: int) -> None:
    with records.SplitReader(*dataset, "train") as reader, pytest.raises(IndexError, match="of 8 examples"):
        reader.read(np.array([0, index]))


def test_parsing_in_the_graph_gives_images_and_labels(dataset: tuple[pathlib.Path, Manifest]) -> None:
    payloads = [example(i).to_payload() for i in (5, 0, 2)]
    encoded, labels, _ = tf.function(records.parse_examples)(tf.constant(payloads))
    assert encoded.numpy().tolist() == [example(i).encoded for i in (5, 0, 2)]
    assert labels.dtype == tf.int64
    assert labels.numpy().tolist() == [2, 0, 2]


def test_batches_of_a_split_come_in_order_and_the_last_is_smaller(dataset: tuple[pathlib.Path, Manifest]) -> None:
    batches = list(records.iterate_split(*dataset, "train", batch_size=3))
    assert [len(encoded) for encoded, _ in batches] == [3, 3, 2]
    assert [image for encoded, _ in batches for image in encoded] == [example(i).encoded for i in range(8)]
    assert np.concatenate([labels for _, labels in batches]).tolist() == [i % 3 for i in range(8)]


def test_examples_come_with_their_file_names(dataset: tuple[pathlib.Path, Manifest]) -> None:
    assert list(records.iterate_examples(*dataset, "train")) == [example(i) for i in range(8)]


def test_a_file_name_that_is_not_utf8_survives(tmp_path: pathlib.Path) -> None:
    odd = records.Example(encoded=b"", labels=(0,), format="png", filename="caf\udce9.png", height=1, width=1)
    assert records.Example.from_payload(odd.to_payload()) == odd


def test_sound_shards_pass_verification(dataset: tuple[pathlib.Path, Manifest]) -> None:
    records.verify_shards(*dataset, ["train"])


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
    with pytest.raises(DataError, match=f"{path.name} {problem}.*prepare the dataset again"):
        records.verify_shards(directory, manifest, ["train"])
    if damage != "flip":  # opening looks at sizes, not at checksums
        with pytest.raises(DataError, match=f"{path.name} {problem}"):
            records.SplitReader(directory, manifest, "train")


def test_a_shard_that_shrinks_under_the_reader_is_named(dataset: tuple[pathlib.Path, Manifest]) -> None:
    directory, manifest = dataset
    path = directory / manifest.splits["train"].shards[2].file_name
    with records.SplitReader(directory, manifest, "train") as reader:
        with path.open("r+b") as f:
            f.truncate(20)
        with pytest.raises(DataError, match=f"{path.name} is truncated: record 0 has"):
            reader.read(np.array([4]))


def test_an_unknown_split_names_those_there_are(dataset: tuple[pathlib.Path, Manifest]) -> None:
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        records.SplitReader(*dataset, "test")


def test_an_empty_shard_is_written_and_read(tmp_path: pathlib.Path) -> None:
    with records.ShardWriter(tmp_path, "test-00000-of-00001") as writer:
        pass
    split = Split(num_examples=0, class_counts=[0], shards=[writer.shard])
    manifest = Manifest(name="n", source="s", class_names=["a"], seed=0, splits={"test": split})
    records.verify_shards(tmp_path, manifest, ["test"])
    assert list(records.iterate_split(tmp_path, manifest, "test", 4)) == []
