"""A compressed file read forwards only, with a bound on what it expands to and on what one header may hold."""

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

# Of all headers before one member, extended attributes included.
MAX_HEADER_BYTES = 2**20
# `xz -9` needs 65 MiB; a file may ask for 4 GiB.
_MAX_LZMA_BYTES = 2**28
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


class ForwardStream:
    """What `tarfile.TarFile` needs of a file to read headers, and the contents between them.

    tarfile reads a header whole, however large it says that it is. Here `read` gives `MAX_HEADER_BYTES` between two
    calls of `begin_header` and then raises, so that what a header makes it allocate is bounded.
    """

    def __init__(self, file: IO[bytes], limits: ArchiveLimits, shown: Advances) -> None:
        """`shown` is advanced by the bytes that are read of `file`. Raises DataError where `file` is damaged."""
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
        """Grants another `MAX_HEADER_BYTES`; `member` is the last one, for messages."""
        self._header_budget = MAX_HEADER_BYTES
        self._member = member

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of a header."""
        self._header_budget -= size
        if self._header_budget < 0:
            raise DataError(
                f"the archive {self._limits.archive} has a header of more than {MAX_HEADER_BYTES:,} bytes after "
                f"{self._member!r}; get it from whom you trust, or pack the folder of images anew"
            )
        self.last_read = self._take(size)
        return self.last_read

    def seek(self, position: int) -> None:
        """Forwards to `position`."""
        if position < self._position:
            raise self._damaged("a member says that it ends before it starts")
        if not self.is_compressed:
            self._raw.seek(position)
            self._position = position
            return
        while self._position < position and self._take(min(BLOCK_BYTES, position - self._position)):
            pass

    def blocks(self, num_bytes: int, member: str) -> Iterator[bytes]:
        """The next `num_bytes`, which are the content of `member`. Raises DataError where there are fewer."""
        while num_bytes:
            block = self._take(min(num_bytes, BLOCK_BYTES))
            if not block:
                raise self._damaged(f"it ends within {member!r}")
            num_bytes -= len(block)
            yield block

    def drain(self) -> None:
        """Reads to the end, where a compressed file has its checksum."""
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
    """Reads of a file, which a progress bar counts."""

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
    """The streams of a bz2 or xz file, one after the other. Unlike `lzma.open`, it bounds the decoder's memory."""

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
    """(whether `raw` is compressed, what is in it)."""
    if magic.startswith(b"\x1f\x8b"):
        return True, gzip.GzipFile(fileobj=raw)  # type: ignore[return-value, arg-type]
    if magic.startswith(b"BZh"):
        return True, _Decompressed(raw, bz2.BZ2Decompressor)
    if magic.startswith(b"\xfd7zXZ\0"):
        return True, _Decompressed(raw, lambda: lzma.LZMADecompressor(memlimit=_MAX_LZMA_BYTES))
    return False, raw


def is_tar(path: os.PathLike[str]) -> bool:
    """Whether `path` begins as a tar does, or as a file that tars are compressed to."""
    with open(path, "rb") as f:
        head = f.read(512)
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")) or head[257:262] == b"ustar"
