"""A store of features on disk: a directory of arrays, each under a key of everything that decides its numbers.

    DIRECTORY/<split>-<key>/   header.json   features.float32: [num_rows, ...], little-endian, C order

A change of the dataset, the weights or anything else in the key leads to another array. A directory gets its name once
it is complete. When an array is opened, it is read once and compared with its checksum; a damaged one counts as
missing. The modification time of a header is the time when its features were last used; who has them open shares it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from trainer.data.dataset.derived import FEATURES, HEADER, note_use
from trainer.errors import DataError
from trainer.system import atomic, in_use, lock

SCHEMA_VERSION: Final = 1
Features = npt.NDArray[np.float32]
_LOCK = ".lock"
_DTYPE = np.dtype("<f4")
_BLOCK_BYTES = 2**22


def num_bytes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * _DTYPE.itemsize


class FeatureWriter:
    """Writes the rows of one array in order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, rows: Features) -> None:
        content = np.ascontiguousarray(rows, _DTYPE).data.cast("B")
        self._file.write(content)
        self._digest.update(content)
        self.num_bytes += len(content)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class FeatureStore:
    """The arrays in `directory`, of at most `budget_bytes` together; the directory is created at the first write."""

    def __init__(self, directory: pathlib.Path, *, budget_bytes: int) -> None:
        self.directory, self._budget_bytes = directory, budget_bytes

    def path(self, split: str, key: Mapping[str, Any]) -> pathlib.Path:
        digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, split, key], sort_keys=True).encode()).hexdigest()
        return self.directory / f"{split}-{digest[:24]}"

    def open(self, split: str, key: Mapping[str, Any]) -> Features | None:
        """Map the features read-only; return None if there are none, or the files are damaged."""
        path = self.path(split, key)
        with contextlib.ExitStack() as unless_opened:
            try:
                descriptor = in_use.share(path / HEADER)
                unless_opened.callback(os.close, descriptor)
                header = json.loads((path / HEADER).read_text(encoding="utf-8"))
                if header["key"] != dict(key) or _sha256(path / FEATURES) != header["sha256"]:
                    return None
                mapped = np.memmap(path / FEATURES, _DTYPE, mode="r", shape=tuple(header["shape"]))
            except (OSError, ValueError, KeyError):
                return None
            unless_opened.pop_all()
        note_use(path)
        in_use.release_with(mapped, descriptor)
        return np.asarray(mapped)

    @contextlib.contextmanager
    def write(
        self, split: str, key: Mapping[str, Any], shape: tuple[int, ...], *, is_alone: bool = True
    ) -> Iterator[FeatureWriter]:
        """Write an array of `shape`; remove the least recently used arrays to make room for it.

        With `is_alone` there is one writer at a time, which first removes the temporary files of killed ones; without,
        several may write at the same time.

        Raises:
            DataError: The disk is full or not writable.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._locked(is_alone=is_alone), self._write(split, key, shape) as writer:
                yield writer
        except OSError as e:
            raise DataError(
                f"the features {self.path(split, key)} cannot be written: {e.strerror or e}; name another place with "
                "--set features.dir=DIRECTORY, or use --set features.cache=off"
            ) from e

    @contextlib.contextmanager
    def _write(self, split: str, key: Mapping[str, Any], shape: tuple[int, ...]) -> Iterator[FeatureWriter]:
        self._make_room(num_bytes(shape), but_keep=self.path(split, key))
        with atomic.new_directory(self.path(split, key)) as directory:
            with (directory / FEATURES).open("wb") as file:
                writer = FeatureWriter(file)
                yield writer
            assert writer.num_bytes == num_bytes(shape), "every row was written"
            header = {"schema_version": SCHEMA_VERSION, "key": key, "shape": shape, "sha256": writer.sha256}
            (directory / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def _locked(self, *, is_alone: bool) -> Iterator[None]:
        with lock.hold(self.directory / _LOCK, shared=not is_alone):
            if is_alone:
                atomic.remove_temporaries(self.directory)
            yield

    def _make_room(self, num_new_bytes: int, *, but_keep: pathlib.Path) -> None:
        entries = sorted(
            (path.stat().st_mtime, path.parent)
            for path in self.directory.glob(f"*/{HEADER}")
            if not path.parent.name.startswith(atomic.TEMPORARY_PREFIX) and path.parent != but_keep
        )
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for _, path in entries}
        total = sum(sizes.values())
        for _, path in entries:
            if total + num_new_bytes <= self._budget_bytes:
                break
            # A process that has mapped the file keeps it until it ends.
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
