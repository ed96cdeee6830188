"""A folder with one folder per class; class folders may have folders of their own.

    FOLDER/cat/1.jpg  FOLDER/cat/more/2.png  FOLDER/dog/3.jpg

Every file below a class folder is a candidate, whatever its name ends in; hidden files and folders (a dot first)
and files beside the class folders are not. A folder whose folders are `train` and `val` or `test` is taken as
split already: the classes are below those.
"""

import os
import pathlib
from collections.abc import Iterator

from trainer.data.manifest import SplitName
from trainer.data.sources.candidate import Candidate, FileSource
from trainer.data.sources.own_products import is_own_product
from trainer.data.sources.split_names import are_splits, fixed_split
from trainer.errors import DataError

MAX_DEPTH = 100


class FolderSource(FileSource):
    """The class is the first folder of a file's path below the folder, or below its split's folder.

    Of a million files, the names in one folder at a time are held.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Raises DataError where `folder` is no folder, or holds no class folder."""
        if not folder.is_dir():
            raise DataError(
                f"the source {folder} is a file; give a folder with one folder of images per class, a .zip or .tar "
                "of such folders, or a .csv or .jsonl file"
            )
        self.base = str(folder)
        self.name = folder.resolve().name
        self._own_products: list[str] = []
        self._class_folders = self._find_class_folders(folder)

    @property
    def class_names(self) -> list[str]:
        """Also of class folders without a file, which are a mistake that must not go unseen."""
        return sorted({class_name for _, _, class_name in self._class_folders})

    @property
    def remarks(self) -> list[str]:
        """What trainer itself has written there is no class."""
        return [f"{self.base}/{name} is left out: trainer has written it" for name in self._own_products]

    def candidates(self) -> Iterator[Candidate]:
        for split, class_folder, class_name in self._class_folders:
            for filename in self._walk(class_folder, ancestors=()):
                yield Candidate(filename=filename, class_names=(class_name,), split=split)

    def _find_class_folders(self, folder: pathlib.Path) -> list[tuple[SplitName | None, str, str]]:
        """(split, path below the folder, class name) of each class folder, sorted."""
        visible = _visible_folders(folder)
        self._own_products = [name for name in visible if is_own_product(folder / name)]
        folders = [name for name in visible if name not in self._own_products]
        if are_splits(folders):
            return [
                (fixed_split(name), f"{name}/{class_name}", class_name)
                for name in folders
                for class_name in _visible_folders(folder / name)
            ]
        if not folders:
            num_files = sum(1 for entry in folder.iterdir() if not entry.name.startswith("."))
            found = f"holds {num_files} files and no folders" if num_files else "is empty"
            raise DataError(f"the folder {folder} {found}; expected one folder of images per class, as in cat/1.jpg")
        return [(None, name, name) for name in folders]

    def _walk(self, directory: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
        """Files below `directory` (a path below the base), also through links, sorted."""
        path = os.path.join(self.base, directory)
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            raise DataError(f"{path} is a link to a folder that it lies in; remove the link")
        if len(ancestors) == MAX_DEPTH:
            raise DataError(f"{path} lies {MAX_DEPTH} folders deep; expected images nearer to their class folder")
        for name, is_folder in _list(path):
            if is_folder:
                yield from self._walk(f"{directory}/{name}", (*ancestors, identity))
            else:
                yield f"{directory}/{name}"


def _visible_folders(folder: pathlib.Path) -> list[str]:
    return [name for name, is_folder in _list(str(folder)) if is_folder]


def _list(path: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what is not hidden, sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as e:
        raise DataError(f"the folder {path} cannot be read: {e.strerror}") from None
