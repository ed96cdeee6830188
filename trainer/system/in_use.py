"""Mark files and folders as in use, so that what a running process needs is told from what a killed one left.

A writer marks what it writes alone, readers share what they have mapped (flock(2)). The kernel drops a mark when its
process ends, in whatever way, so a mark never outlives its process. A file system without such locks keeps no marks:
there, `hold_alone` answers "unknown".
"""

import contextlib
import fcntl
import os
import pathlib
import tempfile
import weakref
from collections.abc import Iterator
from typing import Final, Literal

Use = Literal["free", "used", "unknown"]
# Folders for files that a library can only read from a disk.
SCRATCH_PREFIX: Final = "trainer-export-"


def mark_written(descriptor: int) -> None:
    """Mark an open file or folder as being written, until it is closed or the process ends."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Mark a folder as being written within the block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mark_written(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch_folder() -> Iterator[pathlib.Path]:
    """Yield a new folder for temporary files, marked and removed after the block."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX) as name, writing(pathlib.Path(name)):
        yield pathlib.Path(name)


def share(path: pathlib.Path) -> int:
    """Open a file and mark it as being read until the returned descriptor is closed.

    Raises:
        OSError: it cannot be opened, or has just been removed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            # Waits for a removal that is under way, which leaves another file or none at `path`.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def release_with(owner: object, descriptor: int) -> None:
    """Close a descriptor of `share` when `owner` is no longer referenced."""
    weakref.finalize(owner, os.close, descriptor)


@contextlib.contextmanager
def hold_alone(path: pathlib.Path) -> Iterator[Use]:
    """Yield whether others use a file or folder; if it is "free", none can begin to within the block.

    "free" as well where there is no such file.
    """
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        yield "free"
        return
    except OSError:
        yield "unknown"
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            use: Use = "free"
        except BlockingIOError:
            use = "used"
        except OSError:
            use = "unknown"
        yield use
    finally:
        os.close(descriptor)


def find_use(path: pathlib.Path) -> Use:
    """Return whether a file or folder is in use now."""
    with hold_alone(path) as use:
        return use


def _open(path: pathlib.Path) -> int:
    try:
        # NFS locks a file alone only for those who may write to it.
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
