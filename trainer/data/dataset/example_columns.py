"""Columns of metadata of each example, as text, to slice an evaluation by."""

import collections
import csv
import pathlib
from collections.abc import Sequence

from trainer.data.dataset.records import Example
from trainer.data.dataset.split_reader import SplitReader
from trainer.errors import DataError

# Columns of the records; any other column comes from a CSV file.
RECORD_COLUMNS = ("folder", "format", "height", "width", "weight")
# Columns of a CSV file that identify the example of a line; it has one of them.
KEY_COLUMNS = ("filename", "example")
_CHUNK = 1024  # examples to read at a time


def read_columns(reader: SplitReader, names: Sequence[str], csv_file: pathlib.Path | None) -> dict[str, list[str]]:
    """Read columns of a split, [num_examples] each: `names` from the records, and all columns of `csv_file`.

    The file has a header. Its column `filename` (as in the source, for example cats/1.jpg) or `example` (index in the
    split, from 0) identifies the example of a line; lines of other examples are ignored, and an example without a line
    has the value "".

    Raises:
        DataError: a column is unknown or duplicate, or the file is missing, not a table, or about other examples only.
    """
    unknown = [name for name in names if name not in RECORD_COLUMNS]
    if unknown:
        raise DataError(
            f"the records have no column {unknown[0]!r}; they have {', '.join(RECORD_COLUMNS)}; give others in a CSV "
            "file with --slices"
        )
    columns: dict[str, list[str]] = {name: [] for name in names}
    filenames: list[str] = []
    for example in reader.examples(chunk=_CHUNK):
        filenames.append(example.filename)
        for name in names:
            columns[name].append(_value(example, name))
    if csv_file is None:
        return columns
    added = _read_csv(csv_file, filenames)
    twice = [name for name in added if name in columns]
    if twice:
        raise DataError(f"{csv_file} has a column {twice[0]!r}, which is also asked of the records; rename one of them")
    return columns | added


def _value(example: Example, name: str) -> str:
    if name == "folder":
        return str(pathlib.PurePosixPath(example.filename).parent)
    value = getattr(example, name)
    return f"{value:g}" if name == "weight" else str(value)


def _read_csv(path: pathlib.Path, filenames: list[str]) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            header, *lines = [line for line in csv.reader(f, strict=True) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path} is not a readable CSV file ({e}); give --slices a table in UTF-8") from None
    except ValueError:
        raise DataError(
            f"{path} is empty; expected a header with filename or example, and a line per example"
        ) from None
    keys = [name for name in KEY_COLUMNS if name in header]
    if len(keys) != 1 or len(set(header)) < len(header) or len(header) < 2:
        raise DataError(
            f"the header of {path} is {','.join(header)}; expected exactly one of filename and example, and at least "
            "one other column, none of them twice"
        )
    uneven = next((i for i, line in enumerate(lines) if len(line) != len(header)), None)
    if uneven is not None:
        raise DataError(
            f"line {uneven + 2} of {path} has {len(lines[uneven])} values, but the header has {len(header)}; correct it"
        )
    key = header.index(keys[0])
    rows = {line[key]: line for line in lines}
    if len(rows) < len(lines):
        twice = collections.Counter(line[key] for line in lines).most_common(1)[0][0]
        raise DataError(f"{path} is about the {keys[0]} {twice!r} more than once; keep one line of each")
    identities = filenames if keys[0] == "filename" else [str(i) for i in range(len(filenames))]
    if not any(identity in rows for identity in identities):
        raise DataError(
            f"no line of {path} is about an example of the split: its column {keys[0]} has values like "
            f"{next(iter(rows), '')!r}, the split has values like {identities[0]!r}"
        )
    empty = [""] * len(header)
    return {
        name: [rows.get(identity, empty)[i] for identity in identities] for i, name in enumerate(header) if i != key
    }
