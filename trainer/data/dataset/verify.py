"""Verify every byte of a prepared dataset: files against the manifest, records against their checksums and index."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import threading
from typing import Any, Final

from trainer.console.task_progress import Advances, ShowProgress, show_nothing
from trainer.data.dataset.framing import FOOTER_BYTES, HEADER_BYTES, holds, length_of
from trainer.data.dataset.index import ShardIndex
from trainer.data.dataset.manifest import FILE_NAME, DamagedManifestError, Manifest, Shard
from trainer.data.dataset.records import check_size, checksum_error, has_label
from trainer.data.dataset.storage import DatasetPath, read_blocks
from trainer.errors import DataError, StorageError

_NUM_PARALLEL: Final = 8
# The most damaged records of one shard that are listed; all are counted.
_MAX_LISTED: Final = 20
_SHOW_EVERY: Final = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """A damaged file; `record` and `offset` (where its framing begins) are None if the whole file is meant."""

    file: str
    record: int | None = None
    offset: int | None = None
    problem: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetVerification:
    """The answer of `trainer verify DATASET`.

    Attributes:
        num_damaged_records: of all; `damages` lists at most 20 of each shard.
    """

    dataset: str
    num_files: int
    num_records: int
    num_bytes: int
    num_damaged_records: int
    damages: list[Damage]

    @property
    def passed(self) -> bool:
        return not self.damages

    def answer(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"schema_version": 1, **dataclasses.asdict(self), "passed": self.passed}

    def raise_on_failure(self) -> None:
        """Raise StorageError naming the first damage."""
        if self.damages:
            first, num_more = self.damages[0], len(self.damages) - 1
            more = f", and {num_more} more" if num_more else ""
            raise StorageError(
                f"{self.dataset}/{first.file} {first.problem}{more}; copy the damaged files again, or prepare the "
                "dataset again"
            )


def verify_dataset(dataset_dir: DatasetPath, *, progress: ShowProgress = show_nothing) -> DatasetVerification:
    """Read every byte of a dataset, and list all damage.

    Raises:
        DataError: there is no readable manifest, or the store cannot be read.
    """
    try:
        manifest = Manifest.load(dataset_dir)
    except DamagedManifestError as e:
        damage = Damage(file=FILE_NAME, problem=_problem_of(e, dataset_dir / FILE_NAME))
        return DatasetVerification(
            dataset=str(dataset_dir), num_files=1, num_records=0, num_bytes=0, num_damaged_records=0, damages=[damage]
        )
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    num_records = sum(shard.num_examples for shard in shards)
    with (
        progress(f"verify {dataset_dir}", num_records) as shown,
        concurrent.futures.ThreadPoolExecutor(_NUM_PARALLEL, "verify") as pool,
    ):
        counter = _Counter(shown)
        checks = [_ShardCheck(dataset_dir, shard, counter) for shard in shards]
        try:
            # In order, so that the first error is that of the first shard.
            for running in [pool.submit(check.run) for check in checks]:
                running.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return DatasetVerification(
        dataset=str(dataset_dir),
        num_files=1 + 2 * len(shards),
        num_records=num_records,
        num_bytes=sum(shard.num_bytes for shard in shards),
        num_damaged_records=sum(check.num_damaged_records for check in checks),
        damages=[damage for check in checks for damage in check.damages],
    )


class _Counter:
    """A progress that many threads advance."""

    def __init__(self, shown: Advances) -> None:
        self._shown, self._lock, self._num_waiting = shown, threading.Lock(), 0

    def add_record(self) -> None:
        with self._lock:
            self._num_waiting += 1
            if self._num_waiting == _SHOW_EVERY:
                self._shown.advance(self._num_waiting)
                self._num_waiting = 0


class _ShardCheck:
    """The check of one shard and its index, in one pass over both."""

    def __init__(self, dataset_dir: DatasetPath, shard: Shard, counter: _Counter) -> None:
        self._dataset_dir, self.shard, self._counter = dataset_dir, shard, counter
        self.damages: list[Damage] = []
        self.num_damaged_records = 0

    def run(self) -> None:
        """Fill `damages`."""
        shard, path = self.shard, self._dataset_dir / self.shard.file_name
        index = self._open_index()
        with contextlib.closing(index) if index else contextlib.nullcontext():
            try:
                check_size(path, shard.num_bytes)
                stream = _HashedStream(path)
                self._check_records(stream, index)
                stream.check(shard.sha256)
            except DataError as e:
                self._add_file(path, e)
            except OSError as e:
                self._add_file(path, DataError(f"{path} cannot be read ({e.strerror or e})"))

    def _open_index(self) -> ShardIndex | None:
        try:
            return ShardIndex(self._dataset_dir, self.shard)
        except DataError as e:
            self._add_file(self._dataset_dir / self.shard.index_file_name, e)
            return None

    def _check_records(self, stream: "_HashedStream", index: ShardIndex | None) -> None:
        """Check every record; without an index, up to the first whose length is damaged."""
        position = 0
        for number in range(self.shard.num_examples):
            header = stream.read(HEADER_BYTES)
            length, location = length_of(header), index.locate(number) if index else None
            problem = None
            if length is None:
                problem = "has a damaged header"
            elif location and (location.offset, location.length) != (position + HEADER_BYTES, length):
                problem = f"has {length} bytes where the index says {location.length}"
            if location:
                length = location.length
            if length is None or position + HEADER_BYTES + length + FOOTER_BYTES > self.shard.num_bytes:
                self._add_record(number, position, problem or "goes on beyond the end of the shard")
                return
            self._counter.add_record()
            payload, footer = stream.read(length), stream.read(FOOTER_BYTES)
            if not holds(payload, footer):
                problem = problem or "fails its CRC-32C"
            elif location and not has_label(payload, location.label):
                problem = problem or f"does not have the label {location.label} of the index"
            if problem:
                self._add_record(number, position, problem)
            position += HEADER_BYTES + length + FOOTER_BYTES

    def _add_record(self, number: int, position: int, problem: str) -> None:
        self.num_damaged_records += 1
        if self.num_damaged_records <= _MAX_LISTED:
            text = f"is damaged: record {number} at byte {position} {problem}"
            self.damages.append(Damage(file=self.shard.file_name, record=number, offset=position, problem=text))

    def _add_file(self, path: DatasetPath, error: DataError) -> None:
        self.damages.append(Damage(file=path.name, problem=_problem_of(error, path)))


def _problem_of(error: DataError, path: DatasetPath) -> str:
    """Return the message of `error` without the path before it and the fix behind it."""
    return str(error).removeprefix(f"{path} ").partition("; ")[0]


class _HashedStream:
    """A file that is read from its beginning to its end, and its SHA-256."""

    def __init__(self, path: DatasetPath) -> None:
        self._path, self._blocks, self._digest = path, read_blocks(path), hashlib.sha256()
        self._block = memoryview(b"")

    def read(self, num_bytes: int) -> bytes:
        """Return the next bytes; fewer at the end of the file."""
        parts = []
        while num_bytes > 0 and (self._block or self._read_block()):
            part, self._block = self._block[:num_bytes], self._block[num_bytes:]
            parts.append(part)
            num_bytes -= len(part)
        return b"".join(parts)

    def check(self, expected: str) -> None:
        """Raise DataError if the SHA-256 of the whole file is another one."""
        while self._read_block():
            pass
        if self._digest.hexdigest() != expected:
            raise checksum_error(self._path, self._digest.hexdigest(), expected)

    def _read_block(self) -> bool:
        block = next(self._blocks, b"")
        self._digest.update(block)
        self._block = memoryview(block)
        return bool(block)
