"""Read the records of a TFRecord file, gzipped or not, and verify their checksums.

TensorFlow's own reader stops at the first damaged record, and allocates as much as a damaged length says.
"""

import gzip
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from trainer.console.task_progress import Advances
from trainer.data.dataset.framing import FOOTER_BYTES, HEADER_BYTES, holds, length_of
from trainer.data.sources.archives.staging import BLOCK_BYTES
from trainer.data.sources.candidate import MAX_FILE_BYTES
from trainer.errors import DataError

# An image and its other features.
MAX_RECORD_BYTES = MAX_FILE_BYTES + 2**20
# As for archives: images hardly compress.
_MAX_RATIO, _MIN_TOTAL_BYTES = 100, 2**30
_GZIP_MAGIC = b"\x1f\x8b"


class Record(NamedTuple):
    """A record; `offset` is that of its payload in the expanded file, `is_intact` false if its checksum fails."""

    offset: int
    payload: bytes
    is_intact: bool


def is_gzipped(path: pathlib.Path) -> bool:
    """Return whether `path` is gzipped, and not a TFRecord whose first length looks like gzip's magic number."""
    with path.open("rb") as f:
        header = f.read(HEADER_BYTES)
    return header.startswith(_GZIP_MAGIC) and length_of(header) is None


def iterate_records(path: pathlib.Path, shown: Advances) -> Iterator[Record]:
    """Yield every record in order; advance `shown` by the bytes of `path`.

    Raises:
        DataError: the file is truncated, a length is damaged, so that the next record cannot be found, or a record is
            too large for an image.
    """
    num_bytes = path.stat().st_size
    if not is_gzipped(path):
        with path.open("rb") as f:
            for record in _iterate(f, path, num_bytes):
                yield record
                shown.advance(HEADER_BYTES + len(record.payload) + FOOTER_BYTES)
        return
    try:
        with gzip.open(path) as f:
            yield from _iterate(f, path, max(_MIN_TOTAL_BYTES, _MAX_RATIO * num_bytes))  # type: ignore[arg-type]
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise DataError(f"{path} is damaged or cut off ({e}); copy it again") from None
    shown.advance(num_bytes)


def _iterate(f: IO[bytes], path: pathlib.Path, max_total_bytes: int) -> Iterator[Record]:
    position, number = 0, 0
    while header := f.read(HEADER_BYTES):
        where = f"{path} at byte {position:,} (record {number:,})"
        if len(header) < HEADER_BYTES:
            raise DataError(f"{where} is cut off; copy it again")
        length = length_of(header)
        if length is None:
            raise DataError(
                f"{where} is not a TFRecord, or is damaged: the length of the record fails its checksum, and the "
                "records after it cannot be found; copy it again"
            )
        if length > MAX_RECORD_BYTES:
            raise DataError(f"{where} declares {length:,} bytes; the limit for an image is {MAX_RECORD_BYTES:,}")
        offset = position + HEADER_BYTES
        position = offset + length + FOOTER_BYTES
        if position > max_total_bytes:
            raise DataError(
                f"{where} goes on to byte {position:,}, beyond {max_total_bytes:,}, which is the end of the file or "
                "the limit for a compressed one of its size; copy it again"
            )
        payload = _read_exactly(f, length, where)
        yield Record(offset, payload, holds(payload, _read_exactly(f, FOOTER_BYTES, where)))
        number += 1


def _read_exactly(f: IO[bytes], num_bytes: int, where: str) -> bytes:
    """Read in blocks, so that no more is allocated than the file contains."""
    content = bytearray()
    while len(content) < num_bytes:
        block = f.read(min(BLOCK_BYTES, num_bytes - len(content)))
        if not block:
            raise DataError(f"{where} is cut off; copy it again")
        content += block
    return bytes(content)
