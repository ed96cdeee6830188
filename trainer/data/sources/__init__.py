"""Where labelled images come from: one module for each kind of source, and the table that finds it.

To add a kind, write a subclass of `Source` and an entry of `_KINDS`.
"""

import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Callable

from trainer.data.dataset.manifest import is_prepared
from trainer.data.sources.archives.archive import URL_SCHEMES, ArchiveSource, is_archive
from trainer.data.sources.archives.archive_limits import is_archive_name
from trainer.data.sources.candidate import Candidate, FileSource, Source, SourceOptions
from trainer.data.sources.catalogue import CATALOGUE, Published
from trainer.data.sources.digits import DigitsSource
from trainer.data.sources.fashion_mnist import FashionMnistSource
from trainer.data.sources.folder import FolderSource
from trainer.data.sources.listing import LISTING_SUFFIXES, ListingSource
from trainer.data.sources.tfds import PREFIX as TFDS_PREFIX
from trainer.data.sources.tfds import TfdsSource
from trainer.data.sources.tfrecords import PREFIX as TFRECORDS_PREFIX
from trainer.data.sources.tfrecords import TFRecordSource
from trainer.errors import DataError
from trainer.system.paths import expand_path

__all__ = ["CATALOGUE", "SOURCE_USAGES", "Candidate", "FileSource", "Published", "Source", "SourceOptions"]
__all__ += ["check_unambiguous", "expand_source", "is_source_name", "open_source"]

# In front of the name of a built-in source, where something here has the same name.
BUILT_IN = "builtin:"
_PATH_BEHIND = (TFRECORDS_PREFIX, f"{FashionMnistSource.name}:")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of source: how to write it, what that is, whether a text means it, and how it is opened."""

    usage: str
    meaning: str
    recognises: Callable[[str], bool]
    open: Callable[[str, SourceOptions], Source]
    # Whether it is a name of ours, and whether a path.
    is_built_in: bool = False
    is_path: bool = False
    has_columns: bool = False
    takes_sha256: bool = False


# The first that recognises the text is taken.
_KINDS = (
    _Kind(
        "digits",
        "1,797 scanned digits of 8x8 pixels, which come with the installation",
        lambda text: text == DigitsSource.name,
        lambda text, options: DigitsSource(),
        is_built_in=True,
    ),
    _Kind(
        "fashion-mnist, or fashion-mnist:FOLDER",
        "70,000 pictures of clothes of 28x28 pixels, from Debian's package or a folder of IDX files",
        lambda text: text.partition(":")[0] == FashionMnistSource.name,
        lambda text, options: FashionMnistSource.of_text(text),
        is_built_in=True,
    ),
    _Kind(
        ", ".join(CATALOGUE),
        "; ".join(f"{p.title} ({p.num_bytes / 1e6:,.0f} MB to download, {p.license})" for p in CATALOGUE.values()),
        lambda text: text in CATALOGUE,
        lambda text, options: ArchiveSource(
            CATALOGUE[text].url, sha256=CATALOGUE[text].sha256, published=CATALOGUE[text]
        ),
        is_built_in=True,
    ),
    _Kind(
        "tfds:NAME[/CONFIG][:VERSION]",
        "a dataset of TensorFlow Datasets, downloaded where it is not there yet",
        lambda text: text.startswith(TFDS_PREFIX),
        lambda text, options: TfdsSource(text.removeprefix(TFDS_PREFIX)),
    ),
    _Kind(
        "tfrecords:FOLDER, or 'tfrecords:PATTERN'",
        "TFRecords with image/encoded and image/class/label",
        lambda text: text.startswith(TFRECORDS_PREFIX),
        lambda text, options: TFRecordSource(text.removeprefix(TFRECORDS_PREFIX)),
    ),
    _Kind(
        "a http:// or https:// address of an archive, with --sha256",
        "a .zip or .tar (gzip, bzip2, xz) of folders of images, downloaded and verified",
        lambda text: text.lower().startswith(URL_SCHEMES),
        lambda text, options: ArchiveSource(text, sha256=options.sha256, exclude=options.exclude),
        takes_sha256=True,
    ),
    _Kind(
        "a .csv or .jsonl file with path and label",
        "or labels, and if need be split, weight, and a column for --group-column",
        lambda text: pathlib.Path(text).suffix.lower() in LISTING_SUFFIXES,
        lambda text, options: ListingSource(pathlib.Path(text), group_column=options.group_column),
        is_path=True,
        has_columns=True,
    ),
    _Kind(
        "a .zip or .tar file of folders of images",
        "compressed with gzip, bzip2 or xz, or not; nothing is unpacked under a name from it",
        lambda text: pathlib.Path(text).is_file() and (is_archive_name(text) or is_archive(pathlib.Path(text))),
        lambda text, options: ArchiveSource(text, sha256=options.sha256, exclude=options.exclude),
        is_path=True,
        takes_sha256=True,
    ),
    _Kind(
        "a folder with one folder of images per class",
        "or with train, val and test that hold such folders",
        lambda text: pathlib.Path(text).exists(),
        lambda text, options: FolderSource(pathlib.Path(text), exclude=options.exclude),
        is_path=True,
    ),
)

# How each kind of source is written, and what it is; for the help of commands.
SOURCE_USAGES: tuple[tuple[str, str], ...] = tuple((kind.usage, kind.meaning) for kind in _KINDS)


def open_source(text: str, options: SourceOptions | None = None) -> Source:
    """Opens what a user calls a source: a path, a name or an address; quick, nothing is read or fetched yet.

    `Source.stage` comes before its candidates.

    Raises:
        DataError: nothing is known by that text, what it names is not of the form that its kind must have, or an
            option is given that means nothing to this kind.
    """
    options = options or SourceOptions()
    text = expand_source(text)
    check_unambiguous(text)
    name = text.removeprefix(BUILT_IN)
    for kind in _KINDS:
        if kind.recognises(name) and (name == text or kind.is_built_in):
            return kind.open(name, _checked(text, kind, options))
    names = (DigitsSource.name, FashionMnistSource.name, *CATALOGUE)
    near = difflib.get_close_matches(text, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give {'; '.join(kind.usage for kind in _KINDS)}"
    raise DataError(f"the source {text!r} does not exist, and is not the name of a built-in one; {hint}")


def expand_source(text: str) -> str:
    """`text` with the home directory in place of a `~` at the beginning of the path in it."""
    prefix = next((prefix for prefix in _PATH_BEHIND if text.startswith(prefix)), "")
    return prefix + expand_path(text.removeprefix(prefix))


def is_source_name(text: str) -> bool:
    """Whether `text` means a source by a name or an address, and not by a path."""
    name = text.removeprefix(BUILT_IN)
    return any(kind.recognises(name) and not kind.is_path for kind in _KINDS)


def check_unambiguous(text: str) -> None:
    """Checks that `text` is not the name of a built-in source and of something in the current directory as well.

    A prepared dataset is none: it is no source, as a built-in source is no dataset.

    Raises:
        DataError: it is both; how to write each is said.
    """
    path = pathlib.Path(text)
    is_built_in = any(kind.is_built_in and kind.recognises(text) for kind in _KINDS)
    if is_built_in and os.path.exists(text) and not is_prepared(path):
        raise DataError(
            f"{text} is the name of a built-in source, and there is {path.resolve()} too; write ./{text} for that, or "
            f"{BUILT_IN}{text} for the built-in source"
        )


def _checked(text: str, kind: _Kind, options: SourceOptions) -> SourceOptions:
    if options.group_column is not None and not kind.has_columns:
        raise DataError(
            f"--group-column {options.group_column} is for a .csv or .jsonl file, and the source {text} has no "
            "columns; leave it out, or write such a file"
        )
    if options.sha256 is None:
        return options
    if not kind.takes_sha256:
        raise DataError(f"--sha256 is for an archive by path or address, and the source {text} is none; leave it out")
    sha256 = options.sha256.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise DataError(f"--sha256 is {options.sha256!r}; expected 64 hexadecimal digits, as sha256sum prints them")
    return dataclasses.replace(options, sha256=sha256)
