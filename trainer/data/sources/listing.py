"""A CSV or JSON Lines file with a path and one or more labels per line; paths are relative to the file, or absolute.

    path,label                   {"path": "photos/1.jpg", "label": "cat"}
    photos/1.jpg,cat             {"path": "photos/2.jpg", "label": "dog"}

    path,labels,split,weight     {"path": "photos/1.jpg", "labels": ["cat", "sofa"], "split": "test"}
    photos/1.jpg,cat|sofa,test,  {"path": "photos/2.jpg", "labels": ["dog"], "weight": 2.5}

There is a column `label` or `labels`, not both. `split` is train, validation or test, or a usual synonym; `prepare`
divides the lines that leave it empty. If none does, a missing split is cut from `train`. `weight` is above 0; empty
means 1. Other columns are ignored. Labels are text: 7 and "7" are the same class.

Columns are separated by commas, semicolons, tabs or bars, as the header shows or a line `sep=;` before it declares;
UTF-8 and UTF-16 are read. Backslashes in paths, as on Windows, are read as slashes, unless a file of that exact name
exists.
"""

import csv
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

import numpy as np

from trainer.data.dataset.manifest import SplitName
from trainer.data.sources.candidate import Candidate, FileSource
from trainer.data.sources.left_behind import PassedOver, kind_of_system_file
from trainer.data.sources.split_names import SPLIT_SYNONYMS, find_split
from trainer.data.sources.table_form import find_declared_delimiter, find_delimiter, find_encoding, not_text
from trainer.errors import DataError

LABEL_SEPARATOR: Final = "|"
_COLUMNS: Final = ("path", "label", "labels", "split", "weight")
MAX_LINE_CHARS = 2**20
_OF_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class ListingSource(FileSource):
    """A listing of files: a row whose file is missing becomes a bad file, a malformed row is an error.

    Rows are not kept in memory, so a path that occurs twice is yielded twice. `locator` is the line number.
    """

    def __init__(self, file: pathlib.Path, *, group_column: str | None = None) -> None:
        """Open a listing; `group_column` has groups that must not be divided between splits.

        Raises:
            DataError: `file` is missing.
        """
        if not file.is_file():
            raise DataError(f"the listing {file} does not exist; give a .csv or .jsonl file with path and label")
        self._file = file
        self._group_column = group_column
        self.base = str(file.parent)
        self.name = file.stem
        self._calls_test_eval: set[bool] = set()

    def candidates(self) -> Iterator[Candidate]:
        is_csv = self._file.suffix.lower() != ".jsonl"
        self.passed_over = PassedOver()
        self._calls_test_eval.clear()
        encoding = find_encoding(self._file)
        try:
            with self._file.open(encoding=encoding, newline="") as f:
                for line, row in self._read_csv(f) if is_csv else self._read_jsonl(f):
                    candidate = self._to_candidate(line, row, is_csv=is_csv)
                    kind = kind_of_system_file(os.path.basename(candidate.filename))
                    if kind is None:
                        yield candidate
                    else:
                        self.passed_over.num_ignored[kind] += 1
        except UnicodeError as e:
            raise not_text(self._file, encoding, getattr(e, "reason", str(e))) from None

    def _to_candidate(self, line: int, row: dict[str, Any], *, is_csv: bool) -> Candidate:
        path = row["path"]
        filename = self._spelled(path.strip()) if isinstance(path, str) and _is_usable(path) else ""
        if not filename:
            raise self._error(line, f"has {path!r} for 'path'; expected text")
        return Candidate(
            filename=filename,
            class_names=self._labels_of(line, row, is_csv=is_csv),
            split=self._split_of(line, row.get("split")),
            weight=self._weight_of(line, row.get("weight"), is_csv=is_csv),
            group=self._group_of(line, row),
            locator=str(line),
        )

    def _spelled(self, path: str) -> str:
        """Normalize the separators of `path` and remove `.` parts."""
        if "\\" in path and not _OF_WINDOWS.match(path) and not os.path.lexists(os.path.join(self.base, path)):
            path = path.replace("\\", "/")
        return _without_dots(path)

    def _labels_of(self, line: int, row: dict[str, Any], *, is_csv: bool) -> tuple[str, ...]:
        if "labels" not in row:
            label = _as_text(row["label"])
            if label is None:
                raise self._error(line, f"has {row['label']!r} for 'label'; expected text")
            return (label,)
        given = row["labels"]
        parts = given.split(LABEL_SEPARATOR) if is_csv and isinstance(given, str) else given
        labels = [_as_text(part) for part in parts] if isinstance(parts, list) else []
        if not labels or None in labels:
            expected = f"labels with {LABEL_SEPARATOR} between them" if is_csv else "a list of at least one text"
            raise self._error(line, f"has {given!r} for 'labels'; expected {expected}")
        if len(set(labels)) < len(labels):
            raise self._error(line, f"has {given!r} for 'labels'; expected each label once")
        return tuple(label for label in labels if label is not None)

    def _split_of(self, line: int, value: Any) -> SplitName | None:
        if value is None or value == "" or (isinstance(value, str) and not value.strip()):
            return None
        split = find_split(value) if isinstance(value, str) else None
        if split is None:
            known = ", ".join(SPLIT_SYNONYMS)
            raise self._error(line, f"has {value!r} for 'split'; expected one of {known}, or nothing")
        if split == "test":
            # "eval" means test if it is the only such name; beside "test" it may mean validation.
            self._calls_test_eval.add("eval" in value.lower())
            if len(self._calls_test_eval) > 1:
                raise self._error(
                    line,
                    f"has {value!r} for 'split', and other lines name the test split otherwise: expected test or "
                    "validation",
                )
        return split

    def _weight_of(self, line: int, value: Any, *, is_csv: bool) -> float:
        if value is None or (is_csv and not value.strip()):
            return 1.0
        try:
            if not is_csv and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError
            weight = float(value)
            with np.errstate(over="ignore", under="ignore"):
                stored = float(np.float32(weight))  # as the index of a shard holds it
        except (ValueError, OverflowError):
            stored = math.nan
        if not (math.isfinite(stored) and stored > 0):
            raise self._error(line, f"has {value!r} for 'weight'; expected a number above 0, or nothing for 1")
        return weight

    def _group_of(self, line: int, row: dict[str, Any]) -> str | None:
        if self._group_column is None:
            return None
        value = row[self._group_column]
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        group = _as_text(value)
        if group is None:
            raise self._error(line, f"has {value!r} for {self._group_column!r}; expected text, or nothing")
        return group

    def _error(self, line: int, problem: str) -> DataError:
        return DataError(f"line {line} of {self._file} {problem}; correct the line")

    def _check_columns(self, where: str, columns: list[str]) -> None:
        """Check the column names; `where` names the file or a line of it, for messages."""
        problem = ""
        missing = [] if "path" in columns else ["path"]
        if "label" not in columns and "labels" not in columns:
            missing.append("label")
        if missing:
            problem = f"expected path and label, or path and labels: add {' and '.join(missing)}"
        elif "label" in columns and "labels" in columns:
            problem = "expected label or labels: leave out one of them"
        elif self._group_column is not None and self._group_column not in columns:
            problem = f"--group-column {self._group_column} is not among them: name one of these, or add it"
        if problem:
            raise DataError(f"{where} has the columns {', '.join(columns) or '(none)'}; {problem}")

    def _read_csv(self, f: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        lines = self._read_lines(f)
        header = next(lines, "")
        declared = find_declared_delimiter(header)
        num_before = 0 if declared is None else 1
        if declared is not None:
            header = next(lines, "")
        delimiter = declared or find_delimiter(header, _is_header)
        reader = csv.DictReader(itertools.chain([header], lines), strict=True, delimiter=delimiter)
        try:
            columns = _columns([name.strip() for name in reader.fieldnames or []])
            self._check_columns(f"the first line of {self._file}", columns)
            if len(set(columns)) < len(columns):
                raise DataError(f"the first line of {self._file} names a column twice: {', '.join(columns)}")
            reader.fieldnames = columns
            for row in reader:
                if None in row:
                    raise self._error(num_before + reader.line_num, f"has more than {len(columns)} values")
                yield num_before + reader.line_num, row
        except csv.Error as e:
            raise self._error(num_before + reader.line_num, f"is not CSV ({e})") from None

    def _read_jsonl(self, f: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        for line, text in enumerate(self._read_lines(f), start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as e:
                raise DataError(
                    f"line {line} of {self._file} is not JSON ({e}); expected one object per line"
                ) from None
            if not isinstance(row, dict):
                raise self._error(line, 'is not an object; expected {"path": ..., "label": ...}')
            self._check_columns(f"line {line} of {self._file}", list(row))
            yield line, row

    def _read_lines(self, f: IO[str]) -> Iterator[str]:
        """Yield lines of bounded length: a file that is not a listing may be one endless line."""
        line = 0
        while text := f.readline(MAX_LINE_CHARS):
            line += 1
            if len(text) == MAX_LINE_CHARS:
                raise self._error(line, f"has over {MAX_LINE_CHARS:,} characters; expected a path and labels")
            yield text


def _columns(names: Sequence[str]) -> list[str]:
    """Lower-case the names of known columns, unless the lower-case name is there too."""
    return [name.lower() if name.lower() in _COLUMNS and name.lower() not in names else name for name in names]


def _is_header(names: Sequence[str]) -> bool:
    columns = _columns(names)
    return "path" in columns and ("label" in columns or "labels" in columns)


def _as_text(value: Any) -> str | None:
    """Return the stripped text of a label or group; None if blank or neither text nor an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or not _is_usable(value):
        return None
    return value.strip()


def _is_usable(value: str) -> bool:
    """Return whether `value` can name a file: unlike JSON, file systems allow no NUL or lone surrogate."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _without_dots(path: str) -> str:
    """Remove `.` parts and double slashes; `..` stays, because a link may precede it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


LISTING_SUFFIXES = (".csv", ".tsv", ".jsonl")
