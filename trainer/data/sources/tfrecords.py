"""`tfrecords:DIR-or-GLOB`: existing TFRecord files of tf.train.Example, gzipped or not.

    image/encoded      bytes   the image
    image/class/label  int64   one or several
    image/class/text   bytes   optional; the name of each label
    image/filename     bytes   optional; the default is of the form "file.tfrecord#17"
    image/weight       float   optional

A word in a file's name, as in `flowers-validation-00000-of-00004`, gives its split. The classes are the labels that
occur, in order. Their names come from `labels.txt` beside the files (one per line, or `7:name`), image/class/text, or
their numbers. Whether labels start at 0 or 1 is inferred from those that occur.
"""

import contextlib
import glob
import hashlib
import os
import pathlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.console.task_progress import ShowProgress
from trainer.data.sources.archives.staging import (
    Entry,
    IndexWriter,
    SpoolWriter,
    StagedIndex,
    find_index,
    identity_of,
    iterate_range,
    new_file,
    new_index,
    raise_if_unreadable,
    range_locator,
    staging_into,
    unreadable,
)
from trainer.data.sources.candidate import Candidate, Source
from trainer.data.sources.label_names import LabelNames, read_label_file
from trainer.data.sources.split_names import find_split, fixed_split
from trainer.data.sources.tfrecord_framing import Record, is_gzipped, iterate_records
from trainer.errors import DataError

PREFIX = "tfrecords:"
LABELS_FILE = "labels.txt"
_FILE_NAME = re.compile(r"\.tfrecords?\b|-\d+-of-\d+(\.gz)?$", re.IGNORECASE)
_IN_SPOOL = "spool"


class TFRecordSource(Source):
    """TFRecord files; `stage` reads and checks every record once, and spools the images of gzipped files.

    A record that fails its checksum, or has no image or label, is an unreadable file; its class is unknown, so it is
    listed under the first.
    """

    def __init__(self, text: str) -> None:
        """Find the files of a folder, a file or a glob; raise DataError if there are none."""
        self._text = text
        self._files = _find_files(text)
        self.name = re.sub(r"[*?\[\]]", "", pathlib.Path(text).resolve().name).strip("-_.") or "tfrecords"
        self._index: StagedIndex | None = None
        self._spool = pathlib.Path()
        self._names: dict[str, str] = {}

    @property
    def class_names(self) -> list[str]:
        """The names of the labels that occur, in order."""
        assert self._index is not None, "stage comes first"
        return list(self._names.values())

    def stage(self, workspace: pathlib.Path, progress: ShowProgress) -> None:
        """Read all records once.

        Raises:
            DataError: a file is truncated or not a TFRecord, or the names of a label differ.
        """
        self._spool = workspace / "tfrecords.spool"
        path = workspace / "tfrecords.index"
        files = [*self._files, *(file for file in (self._labels_file,) if file.exists())]
        identity = hashlib.sha256("\n".join(identity_of(file) for file in files).encode("utf-8", "replace")).hexdigest()
        with staging_into(workspace, self._text):
            index = find_index(path, identity)
            if index is None or not self._spool.exists():
                self._scan(path, identity, progress)
                index = StagedIndex(path)
        self._index = index
        self._names = dict(index.fact("class_names"))

    def candidates(self) -> Iterator[Candidate]:
        assert self._index is not None, "stage comes first"
        first = next(iter(self._names.values()))
        for entry in self._index.entries():
            yield Candidate(
                filename=entry.name,
                class_names=tuple(self._names[label] for label in entry.labels) or (first,),
                split=fixed_split(entry.split),
                weight=entry.weight,
                locator=entry.locator,
            )

    def read(self, candidate: Candidate) -> bytes:
        raise_if_unreadable(candidate.locator)
        file, _, locator = candidate.locator.partition("/")
        return b"".join(iterate_range(self._spool if file == _IN_SPOOL else self._files[int(file)], locator))

    @property
    def _labels_file(self) -> pathlib.Path:
        return self._files[0].parent / LABELS_FILE

    def _scan(self, path: pathlib.Path, identity: str, progress: ShowProgress) -> None:
        names = LabelNames(self._text, read_label_file(self._labels_file) if self._labels_file.exists() else None)
        total = sum(file.stat().st_size for file in self._files)
        with (
            progress("reading records", total) as shown,
            new_index(path, identity) as writer,
            new_file(self._spool) as temporary,
            temporary.open("wb") as spool,
        ):
            scan = _Scan(writer, SpoolWriter(spool), names)
            for number, file in enumerate(self._files):
                storage = _IN_SPOOL if is_gzipped(file) else str(number)
                for i, record in enumerate(iterate_records(file, shown)):
                    scan.add(record, f"{file.name}#{i}", storage, _split_in(file.name))
            writer.set_fact("class_names", list(names.resolve().items()))


class _Scan:
    """A conversion of records to entries of an index."""

    def __init__(self, writer: IndexWriter, spooled: SpoolWriter, names: LabelNames) -> None:
        self._writer = writer
        self._spooled = spooled
        self._names = names

    def add(self, record: Record, name: str, storage: str, split: str) -> None:
        """Add a record; `name` is used if it has no name of its own, or one that is taken."""
        labels: tuple[str, ...] = ()
        weight, own_name = 1.0, ""
        if record.is_intact:
            try:
                features = _parse(record.payload)
                encoded = _image_of(features)
                labels = self._names.add(_ints(features, "image/class/label"), _texts(features, "image/class/text"))
                weight, own_name = _weight_of(features), _filename_of(features)
                locator = self._store(record, encoded, storage)
            except ValueError as e:
                locator = unreadable(str(e))
        else:
            locator = unreadable("its record fails its checksum")
        with contextlib.suppress(sqlite3.IntegrityError):
            if own_name:
                self._writer.add(Entry(own_name, locator, split, labels, weight), unique_name=True)
                return
        self._writer.add(Entry(name, locator, split, labels, weight), unique_name=True)

    def _store(self, record: Record, encoded: bytes, storage: str) -> str:
        if storage == _IN_SPOOL:
            return f"{storage}/{self._spooled.append([encoded])}"
        return f"{storage}/{range_locator(record.offset + record.payload.find(encoded), len(encoded))}"


def _find_files(text: str) -> list[pathlib.Path]:
    path = pathlib.Path(text)
    if text and path.is_dir():
        files = [file for file in path.iterdir() if _FILE_NAME.search(file.name) and not file.name.startswith(".")]
    else:
        files = [path] if path.is_file() else [pathlib.Path(found) for found in glob.glob(text, recursive=True)]
    files = sorted(file for file in files if file.is_file())
    if not files:
        raise DataError(
            f"the source {PREFIX}{text} names no TFRecord files; give a folder of files such as "
            "train-00000-of-00008.tfrecord, or a pattern in quotes, as in 'tfrecords:data/train-*'"
        )
    return files


def _split_in(file_name: str) -> str:
    """Return the last word of a file's name that names a split, or ""."""
    words = [word for word in re.split(r"[^A-Za-z]+", file_name) if find_split(word) is not None]
    return words[-1] if words else ""


def _parse(payload: bytes) -> Any:
    import tensorflow as tf
    from google.protobuf import message

    try:
        return tf.train.Example.FromString(payload).features.feature
    except message.DecodeError:
        raise ValueError("its record is not a tf.train.Example") from None


def _image_of(features: Any) -> bytes:
    values: Sequence[bytes] = features["image/encoded"].bytes_list.value if "image/encoded" in features else []
    if len(values) != 1:
        found = ", ".join(sorted(features)[:8]) or "nothing"
        raise ValueError(f"its record has no image/encoded; it holds {found}")
    return values[0]


def _ints(features: Any, key: str) -> Sequence[int]:
    return list(features[key].int64_list.value) if key in features else []


def _texts(features: Any, key: str) -> Sequence[str]:
    return [os.fsdecode(value) for value in features[key].bytes_list.value] if key in features else []


def _weight_of(features: Any) -> float:
    values = list(features["image/weight"].float_list.value) if "image/weight" in features else [1.0]
    if len(values) != 1 or not 0 < values[0] < float("inf"):
        raise ValueError(f"its record has the weight {values}; expected one number above 0")
    return float(values[0])


def _filename_of(features: Any) -> str:
    names = _texts(features, "image/filename")
    return names[0] if len(names) == 1 and "\0" not in names[0] else ""
