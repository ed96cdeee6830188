"""Limits on archives: safe names, and a bound on what they expand to."""

import dataclasses
import re
from typing import Final

from trainer.data.sources.candidate import MAX_FILE_BYTES
from trainer.errors import DataError

# Images hardly compress, so no honest archive expands 100 times, except small ones of blank drawings.
MAX_RATIO: Final = 100
MIN_TOTAL_BYTES: Final = 2**30
MAX_MEMBERS: Final = 50_000_000
MAX_NAME_BYTES: Final = 4096
ARCHIVE_SUFFIXES: Final = (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")


@dataclasses.dataclass
class ArchiveLimits:
    """Counters of the contents of an archive that raise DataError beyond their limits.

    archive: its name in messages.
    max_total_bytes: the limit for all contents, expanded.
    """

    archive: str
    max_total_bytes: int
    max_members: int = MAX_MEMBERS
    max_member_bytes: int = MAX_FILE_BYTES
    num_members: int = 0
    total_bytes: int = 0

    @classmethod
    def of_size(cls, archive: str, num_bytes: int) -> "ArchiveLimits":
        """Return the limits for an archive of `num_bytes`."""
        return cls(archive, max(MIN_TOTAL_BYTES, MAX_RATIO * num_bytes))

    def for_inner(self, archive: str) -> "ArchiveLimits":
        """Return the limits for an archive inside this one, which may expand no further than this one."""
        return dataclasses.replace(self, archive=archive, num_members=0, total_bytes=0)

    def add_member(self) -> None:
        self.num_members += 1
        if self.num_members > self.max_members:
            raise DataError(f"the archive {self.archive} has more than {self.max_members:,} members, the limit; {_FIX}")

    def add_bytes(self, num_bytes: int, where: str) -> None:
        """Count expanded bytes; `where` is the current member."""
        self.total_bytes += num_bytes
        if self.total_bytes > self.max_total_bytes:
            raise DataError(
                f"the archive {self.archive} expands to more than {self.max_total_bytes:,} bytes (at {where!r}), "
                f"the limit for one of its size; {_FIX}"
            )

    def check_size(self, name: str, num_bytes: int) -> None:
        """Check the declared size of a member; for an archive in the archive only the total is limited."""
        limit = self.max_total_bytes if is_archive_name(name) else self.max_member_bytes
        if not 0 <= num_bytes <= limit:
            raise DataError(
                f"{name!r} in the archive {self.archive} is {num_bytes:,} bytes large; the limit is {limit:,}: "
                "leave it out of the archive"
            )

    def clean_name(self, name: str) -> str:
        """Remove `.` and double slashes from a name; keep a trailing slash, which marks a folder.

        Raises:
            DataError: the name is absolute, leads upwards, or is invalid.
        """
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
            raise self._bad_name(name, "an absolute path")
        if ".." in re.split(r"[/\\]", name):
            raise self._bad_name(name, "a path that leads upwards")
        if "\0" in name or len(name) > MAX_NAME_BYTES:
            raise self._bad_name(name[:80], f"not a file name, or one of more than {MAX_NAME_BYTES:,} characters")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        return "/".join(parts) + ("/" if parts and name.endswith("/") else "")

    def _bad_name(self, name: str, problem: str) -> DataError:
        return DataError(
            f"the archive {self.archive} names a member {name!r}, {problem}; expected paths inside the archive: {_FIX}"
        )


_FIX = "get it from a trusted source, or pack the folder of images again"


def is_archive_name(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)
