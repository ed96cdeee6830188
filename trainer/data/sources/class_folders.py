"""Decide which folders of a source are classes and which are splits, without guessing.

A class of vehicles may be called `train`: a folder with the name of a split is one if it contains folders and no images
of its own, or if folders of two different splits lie side by side.
"""

import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trainer.data.dataset.manifest import SplitName
from trainer.data.sources.split_names import find_splits
from trainer.errors import DataError

_MAX_NAMED = 5


class Contents(NamedTuple):
    """The number of files in a folder that may be images, and its subfolders that may contain some, sorted."""

    num_files: int
    folders: Sequence[str]


def find_split_folders(
    source: str, folders: Sequence[str], contents_of: Callable[[str], Contents]
) -> dict[str, SplitName]:
    """Return the split of each of `folders` if they are the splits of `source`; empty if they are its classes.

    Raises:
        DataError: only some of the folders are splits, or none is for training.
    """
    splits = find_splits(list(folders))
    if not splits or len(folders) < 2:
        return {}
    odd = [folder for folder in folders if folder not in splits]
    if len(set(splits.values())) < 2 and odd and not any(map(_looks_like_split, map(contents_of, splits))):
        return {}
    for split in sorted(set(splits.values())):
        of_split = [folder for folder in splits if splits[folder] == split]
        if len(of_split) > 1:
            raise DataError(
                f"{source} holds {_listed(of_split)}, which all name the {split} split; put their images together, or "
                "rename those that are not that split"
            )
    if odd:
        raise _half_a_layout(source, list(splits), odd)
    if "train" not in splits.values():
        raise DataError(
            f"{source} holds {_listed(list(splits))} and no folder of training images; add one called train, or give "
            "a folder that holds the classes"
        )
    return splits


def _half_a_layout(source: str, splits: Sequence[str], odd: Sequence[str]) -> DataError:
    be, them = ("is", "it") if len(odd) == 1 else ("are", "them")
    more = f" and {len(odd) - _MAX_NAMED:,} more" if len(odd) > _MAX_NAMED else ""
    exclude = " ".join(f"--exclude {shlex.quote(folder)}" for folder in odd)
    leave_out = f" or leave {them} out with {exclude}" if not more else ""
    return DataError(
        f"{source} holds {_listed(splits)}, named like {'a split' if len(splits) == 1 else 'splits'}, beside "
        f"{_listed(odd)}{more}, which {be} not; move {them} away{leave_out}, or, "
        f"where all of these are classes, rename {_listed(splits)}"
    )


def find_wrapped(folder: str, contents_of: Callable[[str], Contents]) -> tuple[str, Sequence[str]] | None:
    """Find the class folders below `folder`, the only folder of its source.

    Returns:
        The path of the first folder with several subfolders, and these; None if there is none.
    """
    path = folder
    for _ in range(16):
        contents = contents_of(path)
        if len(contents.folders) > 1:
            return path, contents.folders
        if len(contents.folders) != 1:
            return None
        path = f"{path}/{contents.folders[0]}"
    return None


def no_folders_in(source: str, splits: Sequence[str]) -> DataError:
    """Return the error for splits without a class."""
    return DataError(
        f"{_listed(splits)} of {source} hold no folders; expected one folder of images per class in each, as in "
        f"{splits[0]}/cat/1.jpg"
    )


def _looks_like_split(contents: Contents) -> bool:
    return bool(contents.folders) and not contents.num_files


def _listed(names: Sequence[str]) -> str:
    named = list(names[:_MAX_NAMED])
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
