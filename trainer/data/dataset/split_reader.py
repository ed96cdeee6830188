"""Random access to the records of a prepared dataset, through the indexes of its shards."""

import concurrent.futures
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data.dataset.checks import open_shards
from trainer.data.dataset.framing import FOOTER_BYTES, HEADER_BYTES, holds
from trainer.data.dataset.index import Location, ShardIndex
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.records import Example, has_label, split_of
from trainer.data.dataset.storage import DatasetPath, OpenFiles, RemoteFiles, RemotePath, open_files
from trainer.errors import DataError

# Limit of one read; a read of several records is briefly in memory twice.
_MAX_READ_BYTES: Final = 8 * 1024 * 1024
_CHUNK: Final = 16  # examples to read at a time when iterating over a split


class RecordLocations(NamedTuple):
    """Locations of payloads: index of the shard in `SplitReader.paths`, offset and length in bytes; each [n] int64.

    The TFRecord framing starts 12 bytes before an offset.
    """

    shards: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


class _Read(NamedTuple):
    """One read of part of a shard, and its records as (index among those requested, location)."""

    shard: int
    start: int
    stop: int
    records: list[tuple[int, Location]]


class SplitReader:
    """Random access to the payloads of one split, by positioned reads; safe to share between threads.

    When it is opened, every shard must have its size, and every index its SHA-256. Whatever happens to the files later,
    a payload is returned only if it has its CRC-32C and the label that the index says. Memory use does not grow with
    the dataset.
    """

    def __init__(self, dataset_dir: DatasetPath, manifest: Manifest, split: SplitName) -> None:
        """Open a split.

        Raises:
            DataError: the split, a shard or an index is missing, a shard does not have the recorded size, or an index
                not the recorded checksum.
        """
        self._files: OpenFiles | None = None
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._indexes: list[ShardIndex] = []
        shards = split_of(dataset_dir, manifest, split).shards
        # The shards, in order.
        self.paths: list[DatasetPath] = [dataset_dir / shard.file_name for shard in shards]
        if isinstance(dataset_dir, RemotePath):
            self._pool = concurrent.futures.ThreadPoolExecutor(RemoteFiles.num_parallel_reads, "read")
        self._map = self._pool.map if self._pool else map
        self._indexes = open_shards(dataset_dir, shards)
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
            DataError: a shard cannot be read, or a record is damaged; the message names shard, record and byte.
            IndexError: an index is out of range.
        """
        indices = np.asarray(indices, np.int64)
        reads = self._plan_reads(indices)
        payloads: list[bytes] = [b""] * len(indices)
        for read, content in zip(reads, self._map(self._read_part, reads), strict=True):
            for i, location in read.records:
                start = location.offset - read.start
                payload = content[start : start + location.length]
                footer = content[start + location.length : start + location.length + FOOTER_BYTES]
                if not holds(payload, footer) or not has_label(payload, location.label):
                    raise self._damaged(read.shard, int(indices[i]), location, payload, footer)
                payloads[i] = payload
        return payloads

    def locate(self, indices: npt.NDArray[np.int64]) -> RecordLocations:
        """Return where the payloads of the examples `indices` ([n]) lie; raise IndexError as `read` does."""
        shards, locations = self._look_up(np.asarray(indices, np.int64))
        offsets, lengths, _ = np.array(locations, np.int64).reshape(-1, 3).T
        return RecordLocations(np.array(shards, np.int64), offsets, lengths)

    def examples(self, *, chunk: int = _CHUNK) -> Iterator[Example]:
        """Yield every example in order, reading `chunk` of them at a time; raise DataError as `read` does."""
        for start in range(0, self.num_examples, chunk):
            for payload in self.read(np.arange(start, min(start + chunk, self.num_examples))):
                yield Example.from_payload(payload)

    def labels(self) -> npt.NDArray[np.int32]:
        """Return the label of every example, [num_examples], or `SEVERAL_LABELS`; from the indexes alone."""
        return np.concatenate([index.column("label") for index in self._indexes])

    def multi_hot_labels(self) -> npt.NDArray[np.uint8]:
        """Return multi-hot labels, [num_examples, num_multi_hot]; reads every record."""
        assert self.num_multi_hot is not None, "each example has one label"
        found = np.zeros([self.num_examples, self.num_multi_hot], np.uint8)
        for row, example in enumerate(self.examples()):
            found[row, list(example.labels)] = 1
        return found

    def weights(self) -> npt.NDArray[np.float32]:
        """Return the weight of every example, [num_examples], each above 0; from the indexes alone."""
        return np.concatenate([index.column("weight") for index in self._indexes])

    def close(self) -> None:
        """Close the shards; reading afterwards is an error."""
        if self._pool:
            self._pool.shutdown()
        if self._files:
            self._files.close()
        for index in self._indexes:
            index.close()

    def __enter__(self) -> "SplitReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _look_up(self, indices: npt.NDArray[np.int64]) -> tuple[list[int], list[Location]]:
        """Return the shard of each example, and its location there."""
        if indices.size and (indices.min() < 0 or indices.max() >= self.num_examples):
            raise IndexError(f"indices from {indices.min()} to {indices.max()} of {self.num_examples} examples")
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        entries = (indices - self._starts[shards]).tolist()
        numbers: list[int] = shards.tolist()
        return numbers, [self._indexes[shard].locate(entry) for shard, entry in zip(numbers, entries, strict=True)]

    def _plan_reads(self, indices: npt.NDArray[np.int64]) -> list[_Read]:
        assert self._files is not None, "open"
        shards, locations = self._look_up(indices)
        max_gap_bytes = self._files.max_gap_bytes
        reads: list[_Read] = []
        shard, start, stop = -1, 0, 0
        records: list[tuple[int, Location]] = []
        for i in np.argsort(indices, kind="stable").tolist():
            offset, end = locations[i].offset, locations[i].offset + locations[i].length + FOOTER_BYTES
            if shards[i] == shard and offset <= stop + max_gap_bytes and end - start <= _MAX_READ_BYTES:
                records.append((i, locations[i]))
                stop = max(stop, end)
                continue
            if records:
                reads.append(_Read(shard, start, stop, records))
            shard, start, stop, records = shards[i], offset, end, [(i, locations[i])]
        if records:
            reads.append(_Read(shard, start, stop, records))
        return reads

    def _read_part(self, read: _Read) -> bytes:
        assert self._files is not None, "open"
        return self._files.read(read.shard, read.start, read.stop - read.start)

    def _damaged(self, shard: int, example: int, location: Location, payload: bytes, footer: bytes) -> DataError:
        record = f"record {example - self._starts[shard]} at byte {location.offset - HEADER_BYTES}"
        if len(payload) < location.length or len(footer) < FOOTER_BYTES:
            found = f"is truncated: {record} has {len(payload)} of its {location.length} bytes"
        elif not holds(payload, footer):
            found = f"is damaged: {record} fails its CRC-32C"
        else:
            found = f"is not the one of its index: {record} does not have the label {location.label}"
        return DataError(
            f"the shard {self.paths[shard]} {found}; copy the shard again, or prepare the dataset again "
            "(trainer verify DATASET lists all damage)"
        )


def iterate_examples(dataset_dir: DatasetPath, manifest: Manifest, split: SplitName) -> Iterator[Example]:
    """Yield every example of a split in order; raise DataError as `SplitReader` does."""
    with SplitReader(dataset_dir, manifest, split) as reader:
        yield from reader.examples()
