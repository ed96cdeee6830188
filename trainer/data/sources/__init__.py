"""Where labelled images come from: one module for each kind of source, and the table that finds it.

To add a kind, write a class with the members of `Source` and a line in `_KINDS`.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Callable

from trainer.data.sources.candidate import Candidate, FileSource, Source
from trainer.data.sources.digits import DigitsSource
from trainer.data.sources.fashion_mnist import FashionMnistSource
from trainer.data.sources.folder import FolderSource
from trainer.data.sources.listing import LISTING_SUFFIXES, ListingSource
from trainer.errors import DataError

__all__ = ["Candidate", "FileSource", "Source", "open_source"]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of source: how to write it, whether a text means it, and how it is opened."""

    usage: str
    recognises: Callable[[str], bool]
    open: Callable[[str], Source]


# The first that recognises the text is taken. A name with a meaning of its own wins over a folder of that name,
# which `./digits` still reaches.
_KINDS = (
    _Kind("digits", lambda text: text == DigitsSource.name, lambda text: DigitsSource()),
    _Kind(
        "fashion-mnist, or fashion-mnist:FOLDER",
        lambda text: text.partition(":")[0] == FashionMnistSource.name,
        FashionMnistSource.of_text,
    ),
    _Kind(
        "a .csv or .jsonl file with path and label",
        lambda text: pathlib.Path(text).suffix.lower() in LISTING_SUFFIXES,
        lambda text: ListingSource(pathlib.Path(text)),
    ),
    _Kind(
        "a folder with one folder of images per class",
        lambda text: pathlib.Path(text).exists(),
        lambda text: FolderSource(pathlib.Path(text)),
    ),
)


def open_source(text: str) -> Source:
    """Opens what a user calls a source: a path or a name.

    Raises:
        DataError: nothing is known by that text, or what it names is not of the form that its kind must have.
    """
    for kind in _KINDS:
        if kind.recognises(text):
            return kind.open(text)
    near = difflib.get_close_matches(text, (DigitsSource.name, FashionMnistSource.name), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give {'; '.join(kind.usage for kind in _KINDS)}"
    raise DataError(f"the source {text!r} does not exist, and is not the name of a built-in one; {hint}")
