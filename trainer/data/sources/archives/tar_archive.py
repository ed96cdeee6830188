"""Tar archives: one pass over the headers, read by `tarfile`; contents of a compressed one go to a spool.

Nothing is unpacked under a name from the archive. Links, devices and pipes are neither followed nor created, but
recorded as unreadable images.
"""

import pathlib
import tarfile
from typing import IO

from trainer.console.task_progress import Advances
from trainer.data.sources.archives.archive_limits import ArchiveLimits
from trainer.data.sources.archives.forward_stream import ForwardStream
from trainer.data.sources.archives.staging import Entry, IndexWriter, SpoolWriter, range_locator, unreadable
from trainer.data.sources.left_behind import kind_of_path
from trainer.errors import DataError

_END_OF_ARCHIVE = bytes(tarfile.BLOCKSIZE)


def index_tar(
    path: pathlib.Path, spool: IO[bytes], writer: IndexWriter, limits: ArchiveLimits, shown: Advances
) -> bool:
    """Index every file and folder in a tar, compressed or not; advance `shown` by the bytes of `path`.

    Returns:
        True if locators refer to `spool`, as for a compressed tar; False if they refer to `path` itself.

    Raises:
        DataError: the archive is damaged or truncated, or exceeds `limits`.
    """
    with path.open("rb") as f:
        stream = ForwardStream(f, limits, shown)
        spooled = SpoolWriter(spool)
        try:
            # Not `tarfile.open`, whose decompression is unbounded.
            with tarfile.TarFile(fileobj=stream, mode="r") as tar:  # type: ignore[arg-type]
                while (member := tar.next()) is not None:
                    _add_member(member, stream, spooled, writer, limits)
                    # tarfile would keep all members in memory.
                    tar.members.clear()  # type: ignore[attr-defined]
                    tar.pax_headers = {}
                    stream.begin_header(member.name)
        except (tarfile.TarError, ValueError, RecursionError, OverflowError) as e:
            raise DataError(
                f"the archive {limits.archive} is not a tar, or is damaged ({e or type(e).__name__}); copy it again"
            ) from None
        # tarfile takes a damaged header for the end. A complete archive ends with blocks of zeros.
        if stream.last_read != _END_OF_ARCHIVE:
            raise DataError(
                f"the archive {limits.archive} is damaged or cut off: no end-of-archive marker follows its "
                f"{limits.num_members:,} members; copy it again"
            )
        stream.drain()
    return stream.is_compressed


def _add_member(
    member: tarfile.TarInfo, stream: ForwardStream, spooled: SpoolWriter, writer: IndexWriter, limits: ArchiveLimits
) -> None:
    limits.add_member()
    name = limits.clean_name(member.name)
    if not name:
        return
    if member.isdir():
        name, locator = name.rstrip("/") + "/", ""
    elif kind_of_path(name) is not None:
        locator = unreadable("a system file in the archive")
    elif not member.isreg() or member.issparse():
        locator = unreadable(_kind_of(member))
    else:
        limits.check_size(name, member.size)
        if stream.is_compressed:
            locator = spooled.append(stream.blocks(member.size, name))
        else:
            locator = range_locator(member.offset_data, member.size)
    writer.add(Entry(name, locator, "", (), 1.0))


def _kind_of(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link in the archive"
    if member.isdev():
        return "a device or a pipe in the archive"
    return "a sparse file in the archive" if member.issparse() else "not a regular file in the archive"
