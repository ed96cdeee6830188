"""Read labelled images from any kind of source: one module per kind, and the table that selects it.

To add a kind, write a subclass of `Source` and an entry in `_KINDS`.
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

# Prefix that marks the name of a built-in source if a local path has the same name.
BUILT_IN = "builtin:"
_PATH_PREFIXES = (TFRECORDS_PREFIX, f"{FashionMnistSource.name}:")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of source: its usage and meaning for the help, how to recognize it, and how to open it."""

    usage: str
    meaning: str
    recognises: Callable[[str], bool]
    open: Callable[[str, SourceOptions], Source]
    # is_built_in: the text is a name of ours. is_path: it is a path.
    is_built_in: bool = False
    is_path: bool = False
    has_columns: bool = False
    takes_sha256: bool = False


# The first kind that recognizes the text is used.
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
        "a dataset of TensorFlow Datasets, downloaded if it is not there yet",
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
        "or labels, and optionally split, weight, and a column for --group-column",
        lambda text: pathlib.Path(text).suffix.lower() in LISTING_SUFFIXES,
        lambda text, options: ListingSource(pathlib.Path(text), group_column=options.group_column),
        is_path=True,
        has_columns=True,
    ),
    _Kind(
        "a .zip or .tar file of folders of images",
        "plain or compressed with gzip, bzip2 or xz; no file is created under a name from the archive",
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

# Usage and meaning of each kind of source, for the help of commands.
SOURCE_USAGES: tuple[tuple[str, str], ...] = tuple((kind.usage, kind.meaning) for kind in _KINDS)


def open_source(text: str, options: SourceOptions | None = None) -> Source:
    """Open a source given as a path, a name or a URL, without reading or downloading anything yet.

    Call `Source.stage` before `Source.candidates`.

    Raises:
        DataError: the source does not exist, has the wrong form, or an option does not apply to its kind.
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
    """Replace a `~` at the start of the path in `text` by the home directory."""
    prefix = next((prefix for prefix in _PATH_PREFIXES if text.startswith(prefix)), "")
    return prefix + expand_path(text.removeprefix(prefix))


def is_source_name(text: str) -> bool:
    """Return whether `text` is a source by name or URL, not by path."""
    name = text.removeprefix(BUILT_IN)
    return any(kind.recognises(name) and not kind.is_path for kind in _KINDS)


def check_unambiguous(text: str) -> None:
    """Check that `text` is not both the name of a built-in source and a path in the current directory.

    The path of a prepared dataset does not count, because it is not a source.

    Raises:
        DataError: it is both; the message says how to write each.
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
        raise DataError(f"--sha256 is for an archive by path or address, and {text} is not one; leave it out")
    sha256 = options.sha256.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise DataError(f"--sha256 is {options.sha256!r}; expected 64 hexadecimal digits, as sha256sum prints them")
    return dataclasses.replace(options, sha256=sha256)
