"""Define the entries that `trainer clean` lists, and the places that are held while entries are removed from them."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Literal, Protocol

Kind = Literal["cache", "features", "xla", "unfinished", "checkpoint"]


class RefusedError(Exception):
    """A place is held by a running command; the message says by which."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or folder that could be removed, or that a rule keeps.

    Attributes:
        what: describes it for people.
        used_at_secs: when it was last used, or written to, in seconds since 1970.
        kept_because: the rule that keeps it, whatever its age and the size of all; empty if none does.
        is_needed: it is part of a run, whose size is not counted.
        mark: who uses it has marked this file or folder (`system/in_use.py`); None: the place is held instead.
        is_certain: False where the file system keeps no marks, so that a running process may use it all the same.
    """

    path: pathlib.Path
    kind: Kind
    what: str
    num_bytes: int
    used_at_secs: float
    kept_because: str = ""
    is_needed: bool = False
    mark: pathlib.Path | None = None
    is_certain: bool = True


class Place(Protocol):
    """A folder, or a run, with entries."""

    def find(self) -> Iterable[Entry]:
        """Return the entries that are there now, kept by `kept_because` where a running command holds them."""

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Keep other commands out within the block, in which `find_again` tells what may go.

        Raises:
            RefusedError: a running command holds it.
        """

    def find_again(self) -> Iterable[Entry]:
        """Return the entries as `find` does, for the one who holds the place."""


def measure(path: pathlib.Path) -> tuple[int, float]:
    """Return the bytes of a file or folder, and when it was last written to; links are not followed."""
    num_bytes, written_at_secs = 0, 0.0
    pending = [path]
    while pending:
        at = pending.pop()
        # What another process removes meanwhile counts for nothing.
        with contextlib.suppress(OSError):
            status = at.lstat()
            written_at_secs = max(written_at_secs, status.st_mtime)
            if at.is_dir() and not at.is_symlink():
                pending += [pathlib.Path(entry.path) for entry in os.scandir(at)]
            else:
                num_bytes += status.st_size
    return num_bytes, written_at_secs
