"""Files and directories that appear whole or not at all.

Everything is written under a temporary name beside its target, flushed to the disk, and renamed. A reader
never sees half a file; what a killed writer leaves behind starts with `TEMPORARY_PREFIX` and is never read.
"""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import IO, Any

TEMPORARY_PREFIX = ".tmp-"


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes `content` to `path` atomically, replacing what was there."""
    with new_file(path) as f:
        f.write(content)


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Yields a file to write; on a clean exit it is flushed and takes the name `path`, replacing what was there."""
    temporary = _temporary_name(path)
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: pathlib.Path, content: str) -> None:
    """Writes `content` as UTF-8 to `path` atomically."""
    write_bytes(path, content.encode())


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty directory to fill; on a clean exit it is flushed and takes the name `path`.

    An existing `path` is moved aside first and removed once the new one stands in its place. An exception
    removes the temporary directory and leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                _sync_file(file)
            else:
                sync_directory(file)
        sync_directory(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if path.exists():
        replaced = _temporary_name(path)
        os.rename(path, replaced)
        os.rename(temporary, path)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.rename(temporary, path)
    sync_directory(path.parent)


def remove_temporaries(directory: pathlib.Path) -> None:
    """Removes what killed writers left in `directory`; call it only where no other writer can be at work."""
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


def _temporary_name(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
