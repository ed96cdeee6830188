"""Read a compressed file sequentially, with limits on its expansion and on the size of a header."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from trainer.console.task_progress import Advances
from trainer.data.sources.archives.archive_limits import ArchiveLimits
from trainer.data.sources.archives.staging import BLOCK_BYTES
from trainer.errors import DataError

# Limit for all headers before one member, including extended attributes.
MAX_HEADER_BYTES = 2**20
# `xz -9` needs 65 MiB; a file may demand 4 GiB.
_MAX_LZMA_BYTES = 2**28
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


class ForwardStream:
    """A file for `tarfile.TarFile` to read headers from, and the contents between them.

    tarfile reads a header at once, whatever its declared size. Here `read` returns at most `MAX_HEADER_BYTES` between
    two calls of `begin_header` and then raises, which bounds the memory that a header can allocate.
    """

    def __init__(self, file: IO[bytes], limits: ArchiveLimits, shown: Advances) -> None:
        """Start to read `file`, advancing `shown` by its bytes; reading raises DataError if it is damaged."""
        self._raw = _Counted(file, shown)
        self._limits = limits
        self._position = 0
        self._header_budget = MAX_HEADER_BYTES
        self._member = "its first header"
        self.last_read = b""
        magic = file.read(6)
        file.seek(0)
        self.is_compressed, self._file = _decompressed(self._raw, magic)

    def begin_header(self, member: str) -> None:
        """Allow another `MAX_HEADER_BYTES`; `member` is the last one, for messages."""
        self._header_budget = MAX_HEADER_BYTES
        self._member = member

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes of a header."""
        self._header_budget -= size
        if self._header_budget < 0:
            raise DataError(
                f"the archive {self._limits.archive} has a header of more than {MAX_HEADER_BYTES:,} bytes after "
                f"{self._member!r}; get it from a trusted source, or pack the folder of images again"
            )
        self.last_read = self._take(size)
        return self.last_read

    def seek(self, position: int) -> None:
        """Skip forward to `position`."""
        if position < self._position:
            raise self._damaged("a member says that it ends before it starts")
        if not self.is_compressed:
            self._raw.seek(position)
            self._position = position
            return
        while self._position < position and self._take(min(BLOCK_BYTES, position - self._position)):
            pass

    def blocks(self, num_bytes: int, member: str) -> Iterator[bytes]:
        """Yield the next `num_bytes`, the contents of `member`; raise DataError if there are fewer."""
        while num_bytes:
            block = self._take(min(num_bytes, BLOCK_BYTES))
            if not block:
                raise self._damaged(f"it ends within {member!r}")
            num_bytes -= len(block)
            yield block

    def drain(self) -> None:
        """Read to the end, to verify the checksum of a compressed file."""
        while self.is_compressed and self._take(BLOCK_BYTES):
            pass

    def _take(self, size: int) -> bytes:
        try:
            taken = bytearray()
            while len(taken) < size and (block := self._file.read(size - len(taken))):
                taken += block
        except _DAMAGED as e:
            raise self._damaged(str(e) or type(e).__name__) from None
        self._position += len(taken)
        self._limits.add_bytes(len(taken), self._member)
        return bytes(taken)

    def _damaged(self, problem: str) -> DataError:
        return DataError(
            f"the archive {self._limits.archive} is damaged or cut off after {self._member!r} ({problem}); "
            "copy it again"
        )


class _Counted(io.RawIOBase):
    """A file whose reads advance a progress bar."""

    def __init__(self, file: IO[bytes], shown: Advances) -> None:
        self._file = file
        self._shown = shown

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._shown.advance(len(content))
        return len(content)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(position, whence)


class _Decompressed(io.RawIOBase):
    """A decompressed bz2 or xz file of one or more streams. Unlike `lzma.open`, it limits the decoder's memory."""

    def __init__(self, raw: io.RawIOBase, new_decompressor: Callable[[], Any]) -> None:
        self._raw = raw
        self._new_decompressor = new_decompressor
        self._decompressor = new_decompressor()
        self._pending = b""
        self._in_stream = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor.eof:
                self._pending = self._decompressor.unused_data.lstrip(b"\0")  # streams may be padded
                self._decompressor = self._new_decompressor()
                self._in_stream = False
            if self._decompressor.needs_input and not self._pending:
                self._pending = self._raw.read(2**16) or b""
                if not self._pending:
                    if self._in_stream:
                        raise EOFError("it ends within compressed data")
                    return 0
            content = self._decompressor.decompress(self._pending, len(buffer))
            self._pending = b""
            self._in_stream = True
            if content:
                buffer[: len(content)] = content
                return len(content)


def _decompressed(raw: _Counted, magic: bytes) -> tuple[bool, IO[bytes] | io.RawIOBase]:
    """Return whether `raw` is compressed, and its decompressed contents."""
    if magic.startswith(b"\x1f\x8b"):
        return True, gzip.GzipFile(fileobj=raw)  # type: ignore[return-value, arg-type]
    if magic.startswith(b"BZh"):
        return True, _Decompressed(raw, bz2.BZ2Decompressor)
    if magic.startswith(b"\xfd7zXZ\0"):
        return True, _Decompressed(raw, lambda: lzma.LZMADecompressor(memlimit=_MAX_LZMA_BYTES))
    return False, raw


def is_tar(path: os.PathLike[str]) -> bool:
    """Return whether `path` starts like a tar, or like a compressed file that may be one."""
    with open(path, "rb") as f:
        head = f.read(512)
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")) or head[257:262] == b"ustar"
