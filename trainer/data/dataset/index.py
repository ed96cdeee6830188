"""The index of one shard: offset, length, label and weight of every record, in entries of `records.INDEX_DTYPE`."""

import hashlib
import os
import pathlib
import struct
import tempfile
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data.dataset.framing import FOOTER_BYTES, HEADER_BYTES
from trainer.data.dataset.manifest import Shard
from trainer.data.dataset.records import INDEX_DTYPE, SEVERAL_LABELS, check_size, checksum_error
from trainer.data.dataset.storage import DatasetPath, read_blocks, unreadable
from trainer.errors import DataError

_LOCATION: Final = struct.Struct("<QQi")  # the first fields of `INDEX_DTYPE`
_BLOCK_BYTES: Final = 2**20


class Location(NamedTuple):
    """The location of a payload in its shard, and the label of the example."""

    offset: int
    length: int
    label: int


class ShardIndex:
    """An open index, read an entry at a time, by any number of threads.

    It is compared with its SHA-256 when it is opened. Entries are read by position instead of mapped: an index that is
    overwritten later then gives an error, and not the signal that ends a process which looks behind the end of a mapped
    file. An index in an object store is copied to a temporary file.
    """

    def __init__(self, dataset_dir: DatasetPath, shard: Shard) -> None:
        """Open the index of `shard`.

        Raises:
            DataError: it is missing, cannot be read, or is not what the manifest says.
        """
        self._path, self._shard_path = dataset_dir / shard.index_file_name, dataset_dir / shard.file_name
        self._num_entries, self._num_shard_bytes = shard.num_examples, shard.num_bytes
        self._file: IO[bytes] | None = None
        check_size(self._path, shard.num_examples * INDEX_DTYPE.itemsize)
        try:
            self._file = self._open_local()
            found = _digest_of(self._file)
        except OSError as e:
            self.close()
            raise unreadable(self._path, e) from e
        if found != shard.index_sha256:
            self.close()
            raise checksum_error(self._path, found, shard.index_sha256)

    def _open_local(self) -> IO[bytes]:
        if isinstance(self._path, pathlib.Path):
            return self._path.open("rb", buffering=0)
        copy = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as this object)
        for block in read_blocks(self._path):
            copy.write(block)
        copy.flush()
        return copy

    def locate(self, entry: int) -> Location:
        """Return the location of record number `entry`.

        Raises:
            DataError: the index was changed since it was opened.
        """
        found = self._read(entry * INDEX_DTYPE.itemsize, _LOCATION.size)
        if len(found) == _LOCATION.size:
            location = Location(*_LOCATION.unpack(found))
            is_within = HEADER_BYTES <= location.offset <= self._num_shard_bytes - FOOTER_BYTES - location.length
            if is_within and location.label >= SEVERAL_LABELS:
                return location
        raise DataError(
            f"the index {self._path} was changed after it was opened: its entry {entry} has no label, or is not "
            f"within the {self._num_shard_bytes} bytes of {self._shard_path}; copy both again, or prepare the dataset "
            "again"
        )

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return the field `name` of `INDEX_DTYPE` of every record.

        Raises:
            DataError: the index was changed since it was opened.
        """
        num_bytes = self._num_entries * INDEX_DTYPE.itemsize
        content = bytearray()
        while len(content) < num_bytes:
            block = self._read(len(content), num_bytes - len(content))
            if not block:
                raise DataError(
                    f"the index {self._path} was truncated after it was opened; copy it again, or prepare the dataset "
                    "again"
                )
            content += block
        return np.frombuffer(content, INDEX_DTYPE)[name].copy()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def _read(self, start: int, num_bytes: int) -> bytes:
        assert self._file is not None, "open"
        try:
            return os.pread(self._file.fileno(), num_bytes, start)
        except OSError as e:
            raise unreadable(self._path, e) from e


def _digest_of(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    for block in iter(lambda: file.read(_BLOCK_BYTES), b""):
        digest.update(block)
    return digest.hexdigest()
