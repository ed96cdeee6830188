"""Read small files of directories that may come from elsewhere: regular files of a bounded size, or an error."""

import pathlib
import stat

from trainer.errors import RunError

MAX_SMALL_BYTES = 64 << 20


def check_regular(path: pathlib.Path, *, max_bytes: int | None = None) -> None:
    """Refuse to read what is no regular file: a device or a pipe may never end, or never begin.

    Raises:
        FileNotFoundError, NotADirectoryError: there is nothing.
        RunError: it is no regular file, or is larger than `max_bytes`.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise RunError(f"{path} is a device, a pipe or a directory where a file was expected; copy the run again")
    if max_bytes is not None and found.st_size > max_bytes:
        raise RunError(
            f"{path} has {found.st_size:,} bytes, where {max_bytes:,} are the most it can need; it is refused"
        )


def read_small(path: pathlib.Path) -> bytes:
    """Read a file of settings or figures. Raises as `check_regular`."""
    check_regular(path, max_bytes=MAX_SMALL_BYTES)
    return path.read_bytes()
