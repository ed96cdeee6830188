"""Zip archives, read in place: the central directory is streamed into an index, members by positioned reads.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3 (Zip64). Python's `zipfile` keeps over half a kilobyte per
member in memory, too much for a million, and allows overlapping entries.
"""

import errno
import os
import pathlib
import sqlite3
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from trainer.console.task_progress import Advances
from trainer.data.sources.archives.archive_limits import ArchiveLimits
from trainer.data.sources.archives.staging import Entry, IndexWriter, raise_if_unreadable, unreadable
from trainer.errors import DataError

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_END_MAGIC, _END64_MAGIC, _LOCATOR_MAGIC = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_CENTRAL_MAGIC, _LOCAL_MAGIC = b"PK\1\2", b"PK\3\4"
_MAX_COMMENT_BYTES = 0xFFFF
_ENCRYPTED, _UTF8 = 0x1 | 0x40 | 0x2000, 0x800
_STORED, _DEFLATED = 0, 8
_IN_ZIP64, _ZIP64_EXTRA = 0xFFFFFFFF, 1
_READ_BYTES = 2**16
# Systems (section 4.4.2.2) that separate folders by backslashes: MS-DOS, OS/2, NTFS, VFAT.
_OF_WINDOWS = (0, 6, 10, 14)


class _Member(NamedTuple):
    name: str
    name_bytes: int
    flags: int
    method: int
    crc: int
    compressed_bytes: int
    num_bytes: int
    offset: int
    mode: int


def index_zip(path: pathlib.Path, writer: IndexWriter, limits: ArchiveLimits, shown: Advances) -> None:
    """Index every file and folder in a zip, sorted by offset; advance `shown` by the bytes of `path`.

    Raises:
        DataError: the archive is damaged or encrypted, or exceeds `limits`.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as f:
        start, offset_shift, num_members, central_bytes = _find_central_directory(f, num_bytes, limits.archive)
        f.seek(start)
        found = 0
        for member in _central_members(f, start + central_bytes, limits.archive):
            found += 1
            _add_member(writer, member._replace(offset=member.offset + offset_shift), limits)
    if found != num_members:
        raise _damaged(limits.archive, f"it lists {found:,} members but declares {num_members:,}")
    _check_overlap(writer, limits.archive, start)
    shown.advance(num_bytes)


def iterate_zip_member(path: pathlib.Path, locator: str, name: str) -> Iterator[bytes]:
    """Yield the blocks of one member; thread-safe.

    Raises:
        OSError: the member is damaged; raised at the latest after the last block.
        DataError: it expands to more than its declared size; raised before more is in memory.
    """
    raise_if_unreadable(locator)
    offset, compressed_bytes, num_bytes, method, expected_crc = (int(part) for part in locator.split(":"))
    crc = found = 0
    with path.open("rb") as f:
        f.seek(offset)
        header = f.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
            raise OSError(errno.EIO, "damaged in the archive: no header where it should be")
        *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
        f.seek(name_bytes + extra_bytes, os.SEEK_CUR)
        blocks = _stored(f, compressed_bytes) if method == _STORED else _inflated(f, compressed_bytes)
        for block in blocks:
            found += len(block)
            if found > num_bytes:
                raise DataError(
                    f"{name!r} in the archive {path} expands to more than its declared {num_bytes:,} bytes; get the "
                    "archive from a trusted source, or pack the folder of images again"
                )
            crc = zlib.crc32(block, crc)
            yield block
    if found < num_bytes or crc != expected_crc:
        raise OSError(errno.EIO, "damaged in the archive: its CRC-32 does not match")


def _stored(f: IO[bytes], num_bytes: int) -> Iterator[bytes]:
    while num_bytes and (block := f.read(min(num_bytes, _READ_BYTES))):
        num_bytes -= len(block)
        yield block


def _inflated(f: IO[bytes], num_bytes: int) -> Iterator[bytes]:
    """Decompress at most a block at a time, whatever the data expand to."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for compressed in _stored(f, num_bytes):
            while compressed and not decompressor.eof:
                yield decompressor.decompress(compressed, _READ_BYTES)
                compressed = decompressor.unconsumed_tail
            if decompressor.eof:
                return
        while block := decompressor.decompress(decompressor.unconsumed_tail, _READ_BYTES):
            yield block
    except zlib.error as e:
        raise OSError(errno.EIO, f"damaged in the archive: {e}") from None


def _find_central_directory(f: IO[bytes], num_bytes: int, archive: str) -> tuple[int, int, int, int]:
    """Return the start of the central directory, the shift of its offsets, the number of members, and its size."""
    tail_start = max(0, num_bytes - _END.size - _MAX_COMMENT_BYTES)
    f.seek(tail_start)
    tail = f.read()
    at = tail.rfind(_END_MAGIC)
    if at < 0 or len(tail) < at + _END.size:
        raise _damaged(archive, "it has no directory at its end: it is cut off")
    _, disk, _, _, num_members, central_bytes, central_offset, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    locator_at = end - _END64_LOCATOR.size
    if locator_at >= _END64.size:
        f.seek(locator_at - _END64.size)
        record = f.read(_END64.size + _END64_LOCATOR.size)
        if record.startswith(_END64_MAGIC) and record[_END64.size :].startswith(_LOCATOR_MAGIC):
            *_, disk, _, _, num_members, central_bytes, central_offset = _END64.unpack_from(record)
            end = locator_at - _END64.size
    # Self-extracting archives start with a program, which the offsets do not include.
    start = end - central_bytes
    if disk or start < 0 or start < central_offset:
        raise _damaged(archive, "its directory is not where it should be, or in another part of a split archive")
    return start, start - central_offset, num_members, central_bytes


def _central_members(f: IO[bytes], end: int, archive: str) -> Iterator[_Member]:
    while f.tell() < end:
        header = f.read(_CENTRAL.size)
        if len(header) < _CENTRAL.size or not header.startswith(_CENTRAL_MAGIC):
            raise _damaged(archive, "its directory is invalid")
        (_, made_by, _, flags, method, _, _, crc, compressed_bytes, num_bytes, *lengths, attributes, offset) = (
            _CENTRAL.unpack(header)
        )
        name_bytes, extra_bytes, comment_bytes, _, _ = lengths
        raw_name = f.read(name_bytes)
        extra = f.read(extra_bytes)
        f.seek(comment_bytes, os.SEEK_CUR)
        num_bytes, compressed_bytes, offset = _with_zip64(extra, [num_bytes, compressed_bytes, offset], archive)
        name = raw_name.decode("utf-8", "surrogateescape") if flags & _UTF8 else raw_name.decode("cp437")
        if made_by >> 8 in _OF_WINDOWS:
            name = name.replace("\\", "/")  # some programs violate section 4.4.17.1
        yield _Member(name, name_bytes, flags, method, crc, compressed_bytes, num_bytes, offset, mode=attributes >> 16)


def _with_zip64(extra: bytes, sizes: list[int], archive: str) -> list[int]:
    """Replace sizes that do not fit into 32 bits by those of the extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        field = extra[4 : 4 + length]
        if kind == _ZIP64_EXTRA:
            for i, size in enumerate(sizes):
                if size == _IN_ZIP64:
                    if len(field) < 8:
                        raise _damaged(archive, "an entry of its directory lacks a size")
                    sizes[i] = int.from_bytes(field[:8], "little")
                    field = field[8:]
        extra = extra[4 + length :]
    return sizes


def _add_member(writer: IndexWriter, member: _Member, limits: ArchiveLimits) -> None:
    limits.add_member()
    name = limits.clean_name(member.name)
    if member.flags & _ENCRYPTED:
        raise DataError(f"{name!r} in the archive {limits.archive} is encrypted; unpack it with its password")
    if member.method not in (_STORED, _DEFLATED):
        raise DataError(
            f"{name!r} in the archive {limits.archive} is compressed by method {member.method}; expected 0 (stored) or "
            "8 (deflate): pack it again"
        )
    limits.check_size(name, member.num_bytes)
    limits.add_bytes(member.num_bytes, name)
    sizes = f"{member.compressed_bytes}:{member.num_bytes}"
    locator = f"{member.offset}:{sizes}:{member.method}:{member.crc}"
    if stat.S_IFMT(member.mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a link" if stat.S_ISLNK(member.mode) else "not a regular file"
        locator = unreadable(f"{kind} in the archive")
    # The field `split` holds the earliest end of the member, for `_check_overlap`.
    end = member.offset + _LOCAL.size + member.name_bytes + member.compressed_bytes
    try:
        writer.add(Entry(name, locator, str(end), (), 1.0), position=member.offset)
    except (sqlite3.IntegrityError, OverflowError):
        raise _overlapping(limits.archive, name) from None


def _check_overlap(writer: IndexWriter, archive: str, central_start: int) -> None:
    """Refuse overlapping members: a zip bomb may share compressed bytes between many members of modest size."""
    end = 0
    for position, name, next_end in writer.query("SELECT position, name, split FROM entries ORDER BY position"):
        if position < end:
            raise _overlapping(archive, os.fsdecode(name))
        end = int(next_end)
    if end > central_start:
        raise _damaged(archive, "its last member ends after its directory starts")


def _overlapping(archive: str, name: str) -> DataError:
    return DataError(
        f"{name!r} in the archive {archive} overlaps with another member, as in a zip bomb; get the archive from a "
        "trusted source, or pack the folder of images again"
    )


def _damaged(archive: str, problem: str) -> DataError:
    return DataError(f"the archive {archive} is damaged: {problem}; copy it again")
