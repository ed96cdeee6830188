"""Find the class folders of an archive by the rules of `FolderSource`, below a single top folder if there is one."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from trainer.data.dataset.manifest import SplitName
from trainer.data.sources.class_folders import Contents, find_split_folders, no_folders_in
from trainer.data.sources.left_behind import kind_of_path
from trainer.system.names import normalize_class_name

_MAX_DEPTH = 16


@dataclasses.dataclass(frozen=True)
class ArchiveLayout:
    """The location of the class folders in an archive.

    prefix: the path of the folder that contains them or their splits, with a trailing slash; "" for the top.
    splits: the split of each split folder; empty if the folders are classes.
    class_names: sorted, including folders without files.
    excluded: folders beside the split folders.
    """

    prefix: str
    splits: Mapping[str, SplitName]
    class_names: Sequence[str]
    excluded: frozenset[str] = frozenset()

    def classify(self, name: str) -> tuple[SplitName | None, str] | None:
        """Return the (split, class) of a file in the archive; None if it is outside the class folders."""
        if not name.startswith(self.prefix):
            return None
        parts = name[len(self.prefix) :].split("/")
        split = None
        if self.splits and not (len(parts) > 1 and parts[0] in self.excluded):
            split = self.splits.get(parts.pop(0))
        return (None if split == "train" else split, parts[0]) if len(parts) > 1 else None


def find_layout(
    archive: str, names: Callable[[], Iterable[str]], no_classes: frozenset[str], exclude: frozenset[str]
) -> ArchiveLayout:
    """Find the layout of an archive from the names of its members.

    Args:
        archive: for messages.
        names: yields the names, folders with a trailing slash; called repeatedly, so that not all are in memory.
        no_classes: folders that are not classes.
        exclude: folders that are neither classes nor splits; they are among the classes, for the caller to leave out.

    Raises:
        DataError: only some of the folders are splits.
    """
    prefix, depth = "", 0
    contents = _contents_below(names(), prefix)
    while len(contents) == 1 and depth < _MAX_DEPTH and next(iter(contents.values())).folders:
        prefix += f"{next(iter(contents))}/"
        contents = _contents_below(names(), prefix)
        depth += 1
    folders = [folder for folder in sorted(contents) if normalize_class_name(folder) not in exclude]
    where = f"the archive {archive}" + (f", in {prefix}," if prefix else "")
    splits = find_split_folders(where, folders, lambda folder: contents[folder])
    if not splits:
        return ArchiveLayout(prefix, {}, sorted(contents.keys() - no_classes))
    if not any(contents[split].folders for split in splits):
        raise no_folders_in(where, list(splits))
    excluded = frozenset(contents.keys() - splits.keys())
    class_names = {name for split in splits for name in contents[split].folders} | excluded
    return ArchiveLayout(prefix, splits, sorted(class_names - no_classes), excluded)


def _contents_below(names: Iterable[str], prefix: str) -> dict[str, Contents]:
    """Return the contents of each folder in `prefix`, without system files and folders."""
    num_files: dict[str, int] = {}
    folders: dict[str, set[str]] = {}
    for name in names:
        if not name.startswith(prefix) or kind_of_path(name) is not None:
            continue
        folder, slash, rest = name[len(prefix) :].partition("/")
        if not slash:
            continue
        below = folders.setdefault(folder, set())
        inner, slash, _ = rest.partition("/")
        if slash:
            below.add(inner)
        elif inner:
            num_files[folder] = num_files.get(folder, 0) + 1
    return {folder: Contents(num_files.get(folder, 0), sorted(below)) for folder, below in folders.items()}
