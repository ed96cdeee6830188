"""Files and directories that appear whole or not at all.

Everything is written under a temporary name beside its target, flushed to the disk, and renamed. A reader
never sees half a file; what a killed writer leaves behind starts with `TEMPORARY_PREFIX` and is never read. While its
writer lives, it is marked (`in_use.py`).
"""

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import IO, Any

from trainer.system import in_use

TEMPORARY_PREFIX = ".tmp-"
# linux/fcntl.h and linux/fs.h.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Write `content` to `path` atomically, replacing what was there."""
    with new_file(path) as f:
        f.write(content)


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Yield a file to write; on a clean exit it is flushed and takes the name `path`, replacing what was there."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as f:
            in_use.mark_written(f.fileno())
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: pathlib.Path, content: str) -> None:
    """Write `content` as UTF-8 to `path` atomically."""
    write_bytes(path, content.encode())


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield an empty directory to fill; on a clean exit it is flushed and takes the name `path`.

    An existing `path` is exchanged for the new directory in one operation and then removed, so that at every moment
    one of the two stands there whole. An exception removes the new directory and leaves `path` as it was.

    Raises:
        OSError: the disk is full, or `path` exists on a file system that cannot exchange two names (see `exchange`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        with in_use.writing(temporary):
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _sync_file(file)
                else:
                    sync_directory(file)
            sync_directory(temporary)
            is_replacing = path.exists()
            if is_replacing:
                exchange(temporary, path)
            else:
                os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)
    if is_replacing:
        shutil.rmtree(temporary, ignore_errors=True)


def exchange(one: pathlib.Path, other: pathlib.Path) -> None:
    """Give each of two files or directories the name of the other, in one operation (renameat2(2), RENAME_EXCHANGE).

    Raises:
        OSError: one of them does not exist, or the file system has no such operation (NFS, some FUSE file systems).
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if rename is None or rename(*names, _RENAME_EXCHANGE) != 0:
        number = errno.ENOSYS if rename is None else ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(
                number,
                "this file system cannot replace a directory in one operation; remove the old one first, or write "
                "to a new name",
                str(other),
            )
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def remove_temporaries(directory: pathlib.Path) -> None:
    """Remove what killed writers left in `directory`; call it only where no other writer can be at work."""
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync_directory(directory: pathlib.Path) -> None:
    """Flushes the entries of `directory`, so that a rename in it survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(file: pathlib.Path) -> None:
    with open(file, "rb") as f:
        os.fsync(f.fileno())


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
