"""Files of a source in the workspace of `prepare`: an index of its images, and a spool of unpacked contents.

    <name>.index    SQLite; the table `entries` has a row per image, `facts` other findings
    <name>.spool    concatenated contents; the locator of an entry has their offset, length and CRC-32

Both are written under a temporary name and renamed when complete, the index last. Only a row or a block is in memory at
a time. Contents are not written under their own names, so no name in an archive can do harm.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from trainer.console.task_progress import ShowProgress
from trainer.errors import DataError, TrainerError
from trainer.system import atomic

BLOCK_BYTES = 2**20
# Prefix of a locator that is a reason why the image cannot be read.
_UNREADABLE = "!"
_VERSION = 2


class Entry(NamedTuple):
    """An image of an index. `labels` are the source's names of its classes."""

    name: str
    locator: str
    split: str
    labels: tuple[str, ...]
    weight: float


class IndexWriter:
    """A writer of a new index."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, entry: Entry, *, position: int | None = None, unique_name: bool = False) -> None:
        """Append `entry`, or insert it at `position`, by which entries are sorted.

        Raises:
            sqlite3.IntegrityError: `position` is taken, or so is the name, among entries added with `unique_name`.
        """
        name = os.fsencode(entry.name)  # the name need not be UTF-8, as SQLite's text must
        row = (position, name, name if unique_name else None, entry.locator, entry.split, json.dumps(entry.labels))
        self._connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, entry.weight))

    def query(self, sql: str, *values: Any) -> Iterator[Any]:
        return self._connection.execute(sql, values)

    def set_fact(self, key: str, value: Any) -> None:
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))


class StagedIndex:
    """A finished index."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def entries(self) -> Iterator[Entry]:
        """Yield every entry, by position."""
        with contextlib.closing(_connect(self._path)) as connection:
            yield from _entries_of(connection)

    def names(self) -> Iterator[str]:
        """Yield the name of every entry, by position."""
        with contextlib.closing(_connect(self._path)) as connection:
            for (name,) in connection.execute("SELECT name FROM entries ORDER BY position"):
                yield os.fsdecode(name)

    def fact(self, key: str) -> Any:
        with contextlib.closing(_connect(self._path)) as connection:
            row = connection.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])


def find_index(path: pathlib.Path, identity: str) -> StagedIndex | None:
    """Return the index at `path` if an earlier call finished it for the same `identity`, otherwise None."""
    with contextlib.suppress(sqlite3.DatabaseError):
        index = StagedIndex(path)
        if path.is_file() and index.fact("identity") == [_VERSION, identity]:
            return index
    return None


@contextlib.contextmanager
def staging_into(workspace: pathlib.Path, source: str) -> Iterator[None]:
    """Create the folder `workspace`, and raise TrainerError if it or a file in it cannot be written in the block."""
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as e:
        raise TrainerError(f"{source} cannot be staged in {workspace}: {e.strerror or e}") from None


@contextlib.contextmanager
def new_index(path: pathlib.Path, identity: str) -> Iterator[IndexWriter]:
    """Create an index that is flushed and renamed to `path` on a clean exit, and removed otherwise.

    Raises:
        OSError: the disk is full.
    """
    with (
        _as_os_error(),
        new_file(path) as temporary,
        contextlib.closing(sqlite3.connect(temporary)) as connection,
    ):
        # One transaction into a temporary file: after a crash there is nothing to roll back.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE entries (position INTEGER PRIMARY KEY, name BLOB, unique_name BLOB UNIQUE, locator TEXT, "
            "split TEXT, labels TEXT, weight REAL)"
        )
        connection.execute("CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT)")
        writer = IndexWriter(connection)
        writer.set_fact("identity", [_VERSION, identity])
        yield writer
        connection.commit()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as e:
        raise OSError(errno.EIO, f"{e} (is the disk full?)") from e


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path that is renamed to `path` on a clean exit."""
    temporary = path.with_name(atomic.TEMPORARY_PREFIX + path.name)
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
    atomic.sync_directory(path.parent)


class SpoolWriter:
    """A writer of a spool."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._num_bytes = 0

    def append(self, blocks: Iterable[bytes]) -> str:
        """Append the contents of one image and return its locator."""
        start, crc = self._num_bytes, 0
        for block in blocks:
            self._file.write(block)
            crc = zlib.crc32(block, crc)
            self._num_bytes += len(block)
        return range_locator(start, self._num_bytes - start, crc)


def range_locator(offset: int, num_bytes: int, crc: int | None = None) -> str:
    """Return the locator of a range of a file, with its CRC-32 if known."""
    return f"{offset}:{num_bytes}:{'' if crc is None else crc}"


def unreadable(reason: str) -> str:
    """Return a locator for which `iterate_range` raises OSError with that reason."""
    return _UNREADABLE + reason


def raise_if_unreadable(locator: str) -> None:
    if locator.startswith(_UNREADABLE):
        raise OSError(errno.EINVAL, locator.removeprefix(_UNREADABLE))


def iterate_range(path: pathlib.Path, locator: str) -> Iterator[bytes]:
    """Yield the blocks of a range; raise OSError, at the latest after the last, if it has changed."""
    raise_if_unreadable(locator)
    offset, num_bytes, expected_crc = locator.split(":")
    missing, crc = int(num_bytes), 0
    with open(path, "rb", buffering=0) as f:
        f.seek(int(offset))
        while missing and (block := f.read(min(missing, BLOCK_BYTES))):
            missing -= len(block)
            crc = zlib.crc32(block, crc)
            yield block
    if missing:
        raise OSError(errno.EIO, f"{path.name} ends before it")
    if expected_crc and crc != int(expected_crc):
        raise OSError(errno.EIO, f"its bytes in {path.name} have changed")


def sha256_of(path: pathlib.Path, progress: ShowProgress) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with progress("verifying", path.stat().st_size) as shown, path.open("rb") as f:
        while block := f.read(BLOCK_BYTES):
            digest.update(block)
            shown.advance(len(block))
    return digest.hexdigest()


def identity_of(file: pathlib.Path) -> str:
    """Return the path, size and modification time of `file`, to notice changes."""
    try:
        status = file.stat()
    except OSError as e:
        raise DataError(f"{file} cannot be read: {e.strerror}") from None
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


def _connect(path: pathlib.Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _entries_of(connection: sqlite3.Connection) -> Iterator[Entry]:
    rows = connection.execute("SELECT name, locator, split, labels, weight FROM entries ORDER BY position")
    for name, locator, split, labels, weight in rows:
        yield Entry(os.fsdecode(name), locator, split, tuple(json.loads(labels)), weight)
