"""Local disks: directories that do not exist yet, and sizes for people."""

import pathlib
from typing import Final

BYTES_PER_GIB: Final = 2**30
# A cache that was not asked for leaves this share of the free disk space to others.
FREE_SHARE_LEFT: Final = 0.5


def nearest_directory(path: pathlib.Path) -> pathlib.Path:
    """Return the directory `path`, or its nearest parent that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.is_dir())


def format_size(num_bytes: int) -> str:
    """Format a size in GiB, or a small one in MiB."""
    gib = num_bytes / BYTES_PER_GIB
    return f"{gib:.2f} GiB" if gib >= 0.01 else f"{num_bytes / 2**20:.1f} MiB"
