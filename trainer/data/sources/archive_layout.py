"""Which folders of an archive are its classes: the rules of `FolderSource`, below the one folder that holds all."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from trainer.data.manifest import SplitName
from trainer.data.sources.archive_limits import is_hidden
from trainer.data.sources.split_names import are_splits, fixed_split

_MAX_DEPTH = 16


@dataclasses.dataclass(frozen=True)
class ArchiveLayout:
    """Where the class folders are.

    prefix: path of the folder that holds them, or their splits, with a slash at its end; "" for the top.
    has_splits: whether folders of splits lie there.
    class_names: of the class folders, sorted; also of those without a file.
    """

    prefix: str
    has_splits: bool
    class_names: Sequence[str]

    def place_of(self, name: str) -> tuple[SplitName | None, str] | None:
        """(split, class) of a file in the archive; None where it lies beside the class folders, or is hidden."""
        if is_hidden(name) or not name.startswith(self.prefix):
            return None
        parts = name[len(self.prefix) :].split("/")
        split = fixed_split(parts.pop(0)) if self.has_splits else None
        return (split, parts[0]) if len(parts) > 1 else None


def find_layout(names: Callable[[], Iterable[str]], exclude: frozenset[str]) -> ArchiveLayout:
    """The layout of an archive with these files, and folders with a slash at their end.

    `names` is called several times, since a million names are not held. Folders `exclude` are no classes.
    """
    prefix = ""
    for _ in range(_MAX_DEPTH):
        folders, below = _folders_at(names(), prefix)
        if len(folders) != 1 or not below:
            break
        prefix += f"{folders.pop()}/"
    has_splits = are_splits(sorted(folders))
    if has_splits:
        folders = {folder for split in folders for folder in _folders_at(names(), f"{prefix}{split}/")[0]}
    return ArchiveLayout(prefix, has_splits, sorted(folders - exclude))


def _folders_at(names: Iterable[str], prefix: str) -> tuple[set[str], bool]:
    """The folders in the folder `prefix`, and whether these hold folders."""
    folders, below = set(), False
    for name in names:
        if name.startswith(prefix) and not is_hidden(name):
            folder, slash, rest = name[len(prefix) :].partition("/")
            if slash:
                folders.add(folder)
                below = below or "/" in rest
    return folders, below
