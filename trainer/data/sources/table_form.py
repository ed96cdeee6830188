"""Detect the encoding and the delimiter of a text table.

Only certain signs count (a byte order mark, ASCII in UTF-16, the names of the columns), never likelihood: a byte in a
Windows code page could be any of a dozen characters, so such a file is refused with the byte that was found.
"""

import codecs
import csv
import pathlib
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Final

from trainer.errors import DataError

DELIMITERS: Final = (",", ";", "\t", "|")
_BYTE_ORDER_MARKS: Final = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_HEAD_BYTES: Final = 512
_BLOCK_BYTES: Final = 2**16


def find_encoding(file: pathlib.Path) -> str:
    """Return the encoding of `file`; UTF-8 unless another one is certain.

    Raises:
        DataError: the file is a workbook.
    """
    with file.open("rb") as f:
        head = f.read(_HEAD_BYTES)
    if head.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{file} is a workbook (such as of Excel), not text; save it as CSV in UTF-8")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    even, odd = head[0::2], head[1::2]
    if len(head) >= 8 and not any(odd) and all(even):
        return "utf-16-le"
    if len(head) >= 8 and not any(even) and all(odd):
        return "utf-16-be"
    return "utf-8"


def not_text(file: pathlib.Path, encoding: str, problem: str) -> DataError:
    """Return the error for a `file` that could not be decoded, with the line and the byte."""
    line, byte = _find_undecodable(file) if encoding.startswith("utf-8") else (None, None)
    if line is None or byte is None:
        return DataError(f"{file} is not {encoding.upper()} text ({problem}); save it as UTF-8")
    meant = bytes([byte]).decode("cp1252", "replace")
    return DataError(
        f"line {line} of {file} is not UTF-8: it holds the byte 0x{byte:02X}, which is "
        f"{meant!r} in Windows code page 1252; save it as UTF-8, or, if that is right, convert it with: "
        f"iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(str(file))} > {shlex.quote(f'{file.stem}-utf-8{file.suffix}')}"
    )


def find_delimiter(header: str, is_header: Callable[[Sequence[str]], bool]) -> str:
    """Return the delimiter with which `header` satisfies `is_header`, or else the one that gives the most columns."""
    for delimiter in DELIMITERS:
        if is_header(_fields(header, delimiter)):
            return delimiter
    return max(DELIMITERS, key=lambda delimiter: len(_fields(header, delimiter)))


def find_declared_delimiter(line: str) -> str | None:
    """Return the delimiter that a first line `sep=;`, as for Excel, declares; None for any other line."""
    match = re.fullmatch(r'"?sep=(.)"?[,;\t]*\s*', line, re.IGNORECASE)
    return match[1] if match else None


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _find_undecodable(file: pathlib.Path) -> tuple[int | None, int | None]:
    """Return the line and the value of the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with file.open("rb") as f:
        while block := f.read(_BLOCK_BYTES):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as e:
                return line + e.object[: e.start].count(b"\n"), e.object[e.start]
            line += block.count(b"\n")
    return None, None
