"""Which folders of an archive are its classes: the rules of `FolderSource`, below the one folder that holds all."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from trainer.data.dataset.manifest import SplitName
from trainer.data.sources.class_folders import Contents, find_split_folders, no_folders_in
from trainer.data.sources.left_behind import kind_of_path
from trainer.system.names import normalize_class_name

_MAX_DEPTH = 16


@dataclasses.dataclass(frozen=True)
class ArchiveLayout:
    """Where the class folders are.

    prefix: path of the folder that holds them, or their splits, with a slash at its end; "" for the top.
    splits: of each folder that lies there and is one; empty where these are the classes.
    class_names: of the class folders, sorted; also of those without a file.
    excluded: folders that lie beside those of splits.
    """

    prefix: str
    splits: Mapping[str, SplitName]
    class_names: Sequence[str]
    excluded: frozenset[str] = frozenset()

    def place_of(self, name: str) -> tuple[SplitName | None, str] | None:
        """(split, class) of a file in the archive; None where it lies beside the class folders."""
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
    """The layout of an archive with these files, and folders with a slash at their end.

    `names` is called several times, since a million names are not held. Folders `no_classes` are none; those to
    `exclude` are neither classes nor splits, and given with the classes for whoever leaves them out.

    Raises DataError where only some of the folders are splits.
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
    """Of each folder in the folder `prefix` that is not left behind."""
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
