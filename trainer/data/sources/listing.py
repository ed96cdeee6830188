"""A CSV or JSON Lines file with the columns `path` and `label`; paths are relative to the file, or absolute.

    path,label                   {"path": "photos/1.jpg", "label": "cat"}
    photos/1.jpg,cat             {"path": "photos/2.jpg", "label": "dog"}

Other columns are ignored. Labels are text: 7 and "7" are the same class.
"""

import csv
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from trainer.data.sources.candidate import Candidate, FileSource
from trainer.errors import DataError

_COLUMNS = ("path", "label")


class ListingSource(FileSource):
    """Rows that name a file which is missing become bad files; a row of the wrong form is an error."""

    class_names = None

    def __init__(self, file: pathlib.Path) -> None:
        """Raises DataError where `file` does not exist."""
        if not file.is_file():
            raise DataError(f"the listing {file} does not exist; give a .csv or .jsonl file with path and label")
        self._file = file
        self.base = str(file.parent)
        self.name = file.stem

    def candidates(self) -> Iterator[Candidate]:
        seen: dict[str, int] = {}
        read_rows = _READERS[self._file.suffix.lower()]
        try:
            # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name.
            with self._file.open(encoding="utf-8-sig", newline="") as f:
                for line, row in read_rows(f, self._file):
                    candidate = self._to_candidate(line, row)
                    key = os.path.normpath(candidate.filename)
                    if key in seen:
                        raise self._error(line, f"names {candidate.filename!r} again, after line {seen[key]}")
                    seen[key] = line
                    yield candidate
        except UnicodeDecodeError as e:
            raise DataError(f"{self._file} is not UTF-8 text ({e.reason}); save it as UTF-8") from None

    def _to_candidate(self, line: int, row: dict[str, Any]) -> Candidate:
        values = []
        for column in _COLUMNS:
            value = row.get(column)
            if isinstance(value, int) and not isinstance(value, bool) and column == "label":
                value = str(value)
            if not isinstance(value, str) or not value.strip() or not _is_usable(value):
                raise self._error(line, f"has {value!r} for {column!r}; expected text")
            values.append(value.strip())
        return Candidate(filename=values[0], class_names=(values[1],))

    def _error(self, line: int, problem: str) -> DataError:
        return DataError(f"line {line} of {self._file} {problem}; correct the line")


def _is_usable(value: str) -> bool:
    """Whether `value` can name a file: JSON admits NUL and halves of surrogate pairs, file systems do not."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _read_csv(f: IO[str], file: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(f, strict=True)
    try:
        found = [name.strip() for name in reader.fieldnames or []]
        missing = [column for column in _COLUMNS if column not in found]
        if missing:
            raise DataError(
                f"{file} has the columns {', '.join(found) or '(none)'}; expected path and label in its first line: "
                f"add {' and '.join(missing)}"
            )
        reader.fieldnames = found
        for row in reader:
            yield reader.line_num, row
    except csv.Error as e:
        raise DataError(f"line {reader.line_num} of {file} is not CSV ({e}); correct the line") from None


def _read_jsonl(f: IO[str], file: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(f, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as e:
            raise DataError(f"line {line} of {file} is not JSON ({e}); expected one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f'line {line} of {file} is not an object; expected {{"path": ..., "label": ...}}')
        missing = [column for column in _COLUMNS if column not in row]
        if missing:
            raise DataError(f"line {line} of {file} has no {' and no '.join(missing)}; add it")
        yield line, row


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl}
LISTING_SUFFIXES = tuple(_READERS)
