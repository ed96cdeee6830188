"""Random access to the records of a split: in any order, few reads for neighbours, and damage named."""

import concurrent.futures
import hashlib
import os
import pathlib
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import psutil
import pytest
from small_shards import NUM_EXAMPLES, example, write_dataset

from trainer.data.dataset.manifest import Manifest, Split
from trainer.data.dataset.records import INDEX_DTYPE, Example, ShardWriter
from trainer.data.dataset.split_reader import SplitReader, iterate_examples
from trainer.data.dataset.storage import LocalFiles
from trainer.errors import DataError

Dataset = tuple[pathlib.Path, Manifest]


@pytest.fixture
def dataset(tmp_path: pathlib.Path) -> Dataset:
    """Examples 0 to 7 in three shards."""
    return tmp_path, write_dataset(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all reads of shards from here on."""
    sizes: list[int] = []
    read = LocalFiles.read

    def count(files: LocalFiles, file: int, offset: int, num_bytes: int) -> bytes:
        sizes.append(num_bytes)
        return read(files, file, offset, num_bytes)

    monkeypatch.setattr(LocalFiles, "read", count)
    return sizes


def of_size(num_bytes: int) -> Example:
    return Example(encoded=os.urandom(num_bytes), labels=(0,), format="png", filename="f", height=1, width=1)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None)
@hypothesis.given(indices=st.lists(st.integers(0, 7), max_size=20))
def test_any_examples_are_read_in_the_order_asked_for(
    dataset: tuple[pathlib.Path, Manifest], indices: list[int]
) -> None:
    with SplitReader(*dataset, "train") as reader:
        payloads = reader.read(np.array(indices, np.int64))
    assert payloads == [example(i).to_payload() for i in indices]


def test_one_reader_serves_many_threads(dataset: tuple[pathlib.Path, Manifest]) -> None:
    with SplitReader(*dataset, "train") as reader, concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: reader.read(np.array([i % 8]))[0], range(400)))
    assert found == [example(i % 8).to_payload() for i in range(400)]


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_out_of_range_is_refused(dataset: tuple[pathlib.Path, Manifest], index: int) -> None:
    with SplitReader(*dataset, "train") as reader, pytest.raises(IndexError, match="of 8 examples"):
        reader.read(np.array([0, index]))


def test_examples_come_with_their_file_names(dataset: tuple[pathlib.Path, Manifest]) -> None:
    assert list(iterate_examples(*dataset, "train")) == [example(i) for i in range(8)]
    with SplitReader(*dataset, "train") as reader:
        assert list(reader.examples(chunk=3)) == [example(i) for i in range(8)]


def test_a_shard_that_shrinks_under_the_reader_is_named(dataset: tuple[pathlib.Path, Manifest]) -> None:
    directory, manifest = dataset
    path = directory / manifest.splits["train"].shards[2].file_name
    with SplitReader(directory, manifest, "train") as reader:
        with path.open("r+b") as f:
            f.truncate(20)
        with pytest.raises(DataError, match=f"{path.name} is truncated: record 0 at byte 0 has"):
            reader.read(np.array([4]))


def test_an_unknown_split_names_those_there_are(dataset: tuple[pathlib.Path, Manifest]) -> None:
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        SplitReader(*dataset, "test")


def test_neighbours_of_a_shard_are_one_read_and_shards_are_not_mixed(dataset: Dataset, reads: list[int]) -> None:
    with SplitReader(*dataset, "train") as reader:
        found = reader.read(np.array([5, 0, 7, 2, 6, 1, 4, 3]))
    assert [Example.from_payload(payload) for payload in found] == [example(i) for i in (5, 0, 7, 2, 6, 1, 4, 3)]
    assert len(reads) == 3


def test_records_that_lie_apart_are_read_apart(tmp_path: pathlib.Path, reads: list[int]) -> None:
    manifest = write_dataset(tmp_path, 5, make=lambda _: of_size(10_000))
    with SplitReader(tmp_path, manifest, "train") as reader:
        reader.read(np.array([4, 0, 2]))
        assert len(reads) == 3
        reader.read(np.array([4, 0, 2, 1]))
    assert len(reads) == 3 + 2


def test_a_long_run_is_read_in_parts_of_bounded_size(tmp_path: pathlib.Path, reads: list[int]) -> None:
    sizes = [3_000_000, 3_000_000, 3_000_000, 9_000_000, 10]
    manifest = write_dataset(tmp_path, 5, make=lambda i: of_size(sizes[i]))
    with SplitReader(tmp_path, manifest, "train") as reader:
        found = reader.read(np.arange(5))
    assert [len(Example.from_payload(payload).encoded) for payload in found] == sizes
    # Two; the third; the fourth, which is larger than the bound by itself; the fifth.
    assert [round(num_bytes / 1e6) for num_bytes in reads] == [6, 3, 9, 0]


def test_locations_are_those_of_the_payloads_behind_their_tfrecord_headers(dataset: Dataset) -> None:
    indices = np.array([6, 0, 3, 6])
    with SplitReader(*dataset, "train") as reader:
        places = reader.locate(indices)
        for i, shard, offset, length in zip(indices, *places, strict=True):
            content = reader.paths[shard].read_bytes()
            assert content[offset : offset + length] == example(int(i)).to_payload()
            assert struct.unpack("<Q", content[offset - 12 : offset - 4]) == (length,)
        assert [len(values) for values in reader.locate(np.array([], np.int64))] == [0, 0, 0]
        with pytest.raises(IndexError, match="of 8 examples"):
            reader.locate(np.array([8]))


def test_labels_and_weights_come_from_the_indexes_in_order(tmp_path: pathlib.Path) -> None:
    def make(i: int) -> Example:
        labels = (0, 2) if i == 4 else (i % 3,)
        return Example(encoded=b"", labels=labels, format="png", filename="f", height=1, width=1, weight=1 + i / 2)

    manifest = write_dataset(tmp_path, 2, 0, 4, make=make)
    with SplitReader(tmp_path, manifest, "train") as reader:
        assert reader.labels().tolist() == [0, 1, 2, 0, -1, 2]
        assert reader.weights().tolist() == [1 + i / 2 for i in range(6)]


def test_a_run_cut_short_names_the_first_record_that_is_not_whole(dataset: Dataset) -> None:
    directory, manifest = dataset
    path = directory / manifest.splits["train"].shards[2].file_name
    with SplitReader(directory, manifest, "train") as reader:
        places = reader.locate(np.arange(NUM_EXAMPLES))
        with path.open("r+b") as f:
            f.truncate(int(places.offsets[6]) + 5)
        with pytest.raises(DataError, match=f"{path.name} is truncated: record 2 at byte 443 has 5 of its"):
            reader.read(np.arange(NUM_EXAMPLES))


def test_the_memory_of_a_reader_does_not_grow_with_the_split(tmp_path: pathlib.Path) -> None:
    num_examples = 4_000_000
    # Every entry is about the same, empty record.
    payload = Example(encoded=b"", labels=(0,), format="png", filename="f", height=1, width=1).to_payload()
    with ShardWriter(tmp_path, "s") as writer:
        writer.write_payload(payload, label=0, weight=1.0)
    index = np.fromfile(tmp_path / "s.idx", INDEX_DTYPE).repeat(num_examples).tobytes()
    (tmp_path / "s.idx").write_bytes(index)
    digest = hashlib.sha256(index).hexdigest()
    del index
    shard = writer.shard.model_copy(update={"num_examples": num_examples, "index_sha256": digest})
    split = Split(num_examples=num_examples, class_counts=[num_examples], shards=[shard])
    manifest = Manifest(name="n", source="s", class_names=["a"], seed=0, splits={"train": split})
    before = psutil.Process().memory_info().rss
    with SplitReader(tmp_path, manifest, "train") as reader:
        assert reader.read(np.linspace(0, num_examples - 1, 100).astype(np.int64)) == [payload] * 100
        assert psutil.Process().memory_info().rss - before < 16e6
