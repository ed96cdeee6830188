"""A folder with one folder per class; class folders may have subfolders.

    FOLDER/cat/1.jpg  FOLDER/cat/more/2.png  FOLDER/dog/3.jpg

Every file below a class folder is a candidate, unless its name says that it is not an image (`left_behind`); files
outside the class folders are only counted. If the folders are `train` and `val` or `test`, the source is already split
and its classes are below those (`class_folders`).
"""

import os
import pathlib
from collections.abc import Iterator, Sequence

from trainer.data.dataset.manifest import SplitName
from trainer.data.sources.candidate import Candidate, FileSource
from trainer.data.sources.class_folders import Contents, find_split_folders, find_wrapped, no_folders_in
from trainer.data.sources.left_behind import PassedOver, kind_of_file, kind_of_folder
from trainer.data.sources.own_products import is_own_product
from trainer.errors import DataError
from trainer.system.names import normalize_class_name

MAX_DEPTH = 100


class FolderSource(FileSource):
    """A folder in which the class of a file is the first folder of its path, below the split's folder if there is one.

    Only the names in one folder are in memory at a time.
    """

    def __init__(self, folder: pathlib.Path, *, exclude: Sequence[str] = ()) -> None:
        """Find the class folders; `exclude` names folders that are neither classes nor splits.

        Raises:
            DataError: `folder` is not a folder, or contains no class folder.
        """
        if not folder.is_dir():
            raise DataError(
                f"the source {folder} is a file; give a folder with one folder of images per class, a .zip or .tar "
                "of such folders, or a .csv or .jsonl file"
            )
        self.base = str(folder)
        self.name = folder.resolve().name
        self._own_products: list[str] = []
        self._exclude = frozenset(map(normalize_class_name, exclude))
        self._beside: list[str] = []
        self._class_folders = self._find_class_folders()

    @property
    def class_names(self) -> list[str]:
        """The classes, including folders without files, so that such mistakes are noticed."""
        return sorted({class_name for _, _, class_name in self._class_folders})

    @property
    def remarks(self) -> list[str]:
        """A sentence for each folder that trainer itself wrote, which is not a class."""
        return [f"{self.base}/{name} is left out: it was written by trainer" for name in self._own_products]

    def candidates(self) -> Iterator[Candidate]:
        self.passed_over = PassedOver()
        for directory in self._beside:
            for name, is_folder in self._list(directory, self.passed_over):
                if not is_folder:
                    self.passed_over.add_beside(os.path.join(directory, name))
        for split, class_folder, class_name in self._class_folders:
            for filename in self._walk(class_folder, ancestors=()):
                yield Candidate(filename=filename, class_names=(class_name,), split=split)

    def _find_class_folders(self) -> list[tuple[SplitName | None, str, str]]:
        """Return (split, relative path, class name) of each class folder, sorted; set `_beside` and `_own_products`."""
        self._beside = [""]
        top = self._contents("").folders
        self._own_products = [name for name in top if is_own_product(pathlib.Path(self.base, name))]
        every = [name for name in top if name not in self._own_products]
        excluded = [name for name in every if normalize_class_name(name) in self._exclude]
        folders = [name for name in every if normalize_class_name(name) not in self._exclude]
        splits = find_split_folders(self.base, folders, self._contents)
        if splits:
            inside = self._inside(list(splits))
            self._beside += inside.values()
            found = [
                (None if split == "train" else split, f"{inside[folder]}/{class_name}", class_name)
                for folder, split in splits.items()
                for class_name in self._contents(inside[folder]).folders
            ]
            if not found:
                raise no_folders_in(self.base, list(splits))
            return [*found, *((None, name, name) for name in excluded)]
        if not folders and not excluded:
            num_files = self._contents("").num_files
            found_files = f"holds {num_files} files and no folders" if num_files else "is empty"
            raise DataError(
                f"the folder {self.base} {found_files}; expected one folder of images per class, as in cat/1.jpg"
            )
        wrapped = find_wrapped(folders[0], self._contents) if len(folders) == 1 else None
        if wrapped is not None:
            path, inner = wrapped
            raise DataError(
                f"the folder {self.base} holds the one folder {folders[0]}, which would be a single class; "
                f"{len(inner)} folders ({', '.join(inner[:3])}{', ...' if len(inner) > 3 else ''}) lie in "
                f"{os.path.join(self.base, path)}: give that instead"
            )
        return [(None, name, name) for name in sorted([*folders, *excluded])]

    def _inside(self, splits: Sequence[str]) -> dict[str, str]:
        """Return the parent of each split's class folders: the split, or the single folder that each split contains."""
        inside = {split: split for split in splits}
        for _ in range(MAX_DEPTH):
            below = {split: self._contents(path).folders for split, path in inside.items()}
            deeper = {split: f"{inside[split]}/{names[0]}" for split, names in below.items() if len(names) == 1}
            if len(deeper) < len(inside) or not all(self._contents(path).folders for path in deeper.values()):
                return inside
            inside = deeper
        return inside

    def _contents(self, directory: str) -> Contents:
        entries = self._list(directory)
        folders = [name for name, is_folder in entries if is_folder]
        return Contents(len(entries) - len(folders), folders)

    def _walk(self, directory: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
        """Yield the files below `directory` (relative to the base), also through links, sorted."""
        path = os.path.join(self.base, directory)
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            raise DataError(f"{path} is a link to a folder that contains it; remove the link")
        if len(ancestors) == MAX_DEPTH:
            raise DataError(f"{path} lies {MAX_DEPTH} folders deep; expected images nearer to their class folder")
        for name, is_folder in self._list(directory, self.passed_over):
            if is_folder:
                yield from self._walk(f"{directory}/{name}", (*ancestors, identity))
            else:
                yield f"{directory}/{name}"

    def _list(self, directory: str, passed_over: PassedOver | None = None) -> list[tuple[str, bool]]:
        """List (name, is a folder) of possible images and their folders, sorted; count the rest in `passed_over`."""
        path = os.path.join(self.base, directory)
        listed = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    is_folder = entry.is_dir()
                    kind = kind_of_folder(entry.name) if is_folder else kind_of_file(entry.name)
                    if kind is None:
                        listed.append((entry.name, is_folder))
                    elif passed_over is not None:
                        passed_over.num_ignored[kind] += _count_files(entry.path) if is_folder else 1
        except OSError as e:
            raise DataError(f"the folder {path} cannot be read: {e.strerror}") from None
        return sorted(listed)


def _count_files(folder: str) -> int:
    """Count the files below a folder, at least one; unreadable folders, like lost+found, are ignored."""
    return max(1, sum(len(files) for _, _, files in os.walk(folder)))
