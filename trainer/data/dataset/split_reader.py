"""Random access to the records of a prepared dataset, through the indexes of its shards."""

import concurrent.futures
import contextlib
import mmap
import pathlib
import struct
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data.dataset.manifest import Manifest, Shard, SplitName
from trainer.data.dataset.records import INDEX_DTYPE, Example, check_size, split_of
from trainer.data.dataset.storage import DatasetPath, OpenFiles, RemoteFiles, RemotePath, open_files, read_blocks
from trainer.errors import DataError

# Limit of one read; a read of several records is briefly in memory twice.
_MAX_READ_BYTES: Final = 8 * 1024 * 1024
_LOCATION: Final = struct.Struct("<QQ")  # offset and length, the first fields of `INDEX_DTYPE`
_CHUNK: Final = 16  # examples to read at a time when iterating over a split


class RecordLocations(NamedTuple):
    """Locations of payloads: index of the shard in `SplitReader.paths`, offset and length in bytes; each [n] int64.

    The TFRecord framing starts 12 bytes before an offset.
    """

    shards: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


class _Read(NamedTuple):
    """One read of part of a shard, and its records as (index among those requested, offset, length)."""

    shard: int
    start: int
    stop: int
    records: list[tuple[int, int, int]]


class SplitReader:
    """Random access to the payloads of one split, by positioned reads; safe to share between threads.

    Every shard is opened and every index mapped once; memory use does not grow with the dataset. Indexes in an object
    store are copied to a temporary file first. The checksums of records are not verified: a launch calls
    `verify_shards`, which is stronger, before the first step.
    """

    def __init__(self, dataset_dir: DatasetPath, manifest: Manifest, split: SplitName) -> None:
        """Open a split.

        Raises:
            DataError: the split, a shard or an index is missing, or a file does not have the recorded size.
        """
        self._files: OpenFiles | None = None
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        shards = split_of(dataset_dir, manifest, split).shards
        # The shards, in order.
        self.paths: list[DatasetPath] = [dataset_dir / shard.file_name for shard in shards]
        if isinstance(dataset_dir, RemotePath):
            self._pool = concurrent.futures.ThreadPoolExecutor(RemoteFiles.num_parallel_reads, "read")
        self._map = self._pool.map if self._pool else map
        self._indexes = list(self._map(lambda shard: _open_index(dataset_dir, shard), shards))
        self._files = open_files(self.paths)
        # Example i lies in the shard whose [start, next start) contains i.
        self._starts = np.cumsum([0, *(shard.num_examples for shard in shards)], dtype=np.int64)
        self.num_examples = int(self._starts[-1])
        # The number of classes if examples have several labels, else None.
        self.num_multi_hot = manifest.num_classes if manifest.task == "multi_label" else None

    def read(self, indices: npt.NDArray[np.int64]) -> list[bytes]:
        """Read the payloads of the examples `indices` ([n], each in [0, num_examples)), in that order.

        Neighbours in a shard are read together. Reads of an object store run in parallel.

        Raises:
            DataError: a shard is truncated or cannot be read; the message names it.
            IndexError: an index is out of range.
        """
        indices = np.asarray(indices, np.int64)
        reads = self._plan_reads(indices)
        payloads: list[bytes] = [b""] * len(indices)
        for read, content in zip(reads, self._map(self._read_part, reads), strict=True):
            if len(read.records) == 1 and len(content) == read.stop - read.start:
                payloads[read.records[0][0]] = content
                continue
            view = memoryview(content)
            for i, offset, length in read.records:
                payload = bytes(view[offset - read.start : offset - read.start + length])
                if len(payload) != length:
                    raise self._truncated(read.shard, int(indices[i]), len(payload), length)
                payloads[i] = payload
        return payloads

    def locate(self, indices: npt.NDArray[np.int64]) -> RecordLocations:
        """Return where the payloads of the examples `indices` ([n]) lie; raise IndexError as `read` does."""
        shards, locations = self._look_up(np.asarray(indices, np.int64))
        offsets, lengths = np.array(locations, np.int64).reshape(-1, 2).T
        return RecordLocations(np.array(shards, np.int64), offsets, lengths)

    def examples(self, *, chunk: int = _CHUNK) -> Iterator[Example]:
        """Yield every example in order, reading `chunk` of them at a time; raise DataError as `read` does."""
        for start in range(0, self.num_examples, chunk):
            for payload in self.read(np.arange(start, min(start + chunk, self.num_examples))):
                yield Example.from_payload(payload)

    def labels(self) -> npt.NDArray[np.int32]:
        """Return the label of every example, [num_examples], or `SEVERAL_LABELS`; from the indexes alone."""
        return np.concatenate([np.frombuffer(index, INDEX_DTYPE)["label"] for index in self._indexes])

    def multi_hot_labels(self) -> npt.NDArray[np.uint8]:
        """Return multi-hot labels, [num_examples, num_multi_hot]; reads every record."""
        assert self.num_multi_hot is not None, "each example has one label"
        found = np.zeros([self.num_examples, self.num_multi_hot], np.uint8)
        for row, example in enumerate(self.examples()):
            found[row, list(example.labels)] = 1
        return found

    def weights(self) -> npt.NDArray[np.float32]:
        """Return the weight of every example, [num_examples], each above 0; from the indexes alone."""
        return np.concatenate([np.frombuffer(index, INDEX_DTYPE)["weight"] for index in self._indexes])

    def close(self) -> None:
        """Close the shards; reading afterwards is an error."""
        if self._pool:
            self._pool.shutdown()
        if self._files:
            self._files.close()

    def __enter__(self) -> "SplitReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _look_up(self, indices: npt.NDArray[np.int64]) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the shard of each example, and its (offset, length)."""
        if indices.size and (indices.min() < 0 or indices.max() >= self.num_examples):
            raise IndexError(f"indices from {indices.min()} to {indices.max()} of {self.num_examples} examples")
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        entries = ((indices - self._starts[shards]) * INDEX_DTYPE.itemsize).tolist()
        # Takes a third of the time of numpy indexing, for a few hundred scattered records.
        locations: list[Any] = [
            _LOCATION.unpack_from(self._indexes[shard], entry)
            for shard, entry in zip(shards.tolist(), entries, strict=True)
        ]
        return shards.tolist(), locations

    def _plan_reads(self, indices: npt.NDArray[np.int64]) -> list[_Read]:
        assert self._files is not None, "open"
        shards, locations = self._look_up(indices)
        max_gap_bytes = self._files.max_gap_bytes
        reads: list[_Read] = []
        shard, start, stop = -1, 0, 0
        records: list[tuple[int, int, int]] = []
        for i in np.argsort(indices, kind="stable").tolist():
            offset, length = locations[i]
            if shards[i] == shard and offset <= stop + max_gap_bytes and offset + length - start <= _MAX_READ_BYTES:
                records.append((i, offset, length))
                stop = max(stop, offset + length)
                continue
            if records:
                reads.append(_Read(shard, start, stop, records))
            shard, start, stop, records = shards[i], offset, offset + length, [(i, offset, length)]
        if records:
            reads.append(_Read(shard, start, stop, records))
        return reads

    def _read_part(self, read: _Read) -> bytes:
        assert self._files is not None, "open"
        return self._files.read(read.shard, read.start, read.stop - read.start)

    def _truncated(self, shard: int, index: int, num_found: int, length: int) -> DataError:
        return DataError(
            f"the shard {self.paths[shard]} is truncated: record {index - self._starts[shard]} has {num_found} of its "
            f"{length} bytes; copy the shard again, or prepare the dataset again"
        )


def iterate_examples(dataset_dir: DatasetPath, manifest: Manifest, split: SplitName) -> Iterator[Example]:
    """Yield every example of a split in order; raise DataError as `SplitReader` does."""
    with SplitReader(dataset_dir, manifest, split) as reader:
        yield from reader.examples()


def _open_index(dataset_dir: DatasetPath, shard: Shard) -> mmap.mmap | bytes:
    """Check the sizes of a shard and its index, and map the index into memory."""
    path = dataset_dir / shard.index_file_name
    check_size(dataset_dir / shard.file_name, shard.num_bytes)
    check_size(path, shard.num_examples * INDEX_DTYPE.itemsize)
    if shard.num_examples == 0:
        return b""  # an empty file cannot be mapped
    with contextlib.ExitStack() as files:
        if isinstance(path, pathlib.Path):
            file: IO[bytes] = files.enter_context(path.open("rb"))
        else:
            file = files.enter_context(tempfile.TemporaryFile())
            file.writelines(read_blocks(path))
            file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
