"""Read the body of a request, compressed or not, within limits of size and, once the server stops, of time."""

import asyncio
import contextlib
import zlib

from starlette.requests import Request

from serving.protocol.limits import MAX_UNCOMPRESSED_BYTES
from serving.protocol.status import Code, RequestError, invalid

_GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS


class BodyReader:
    """Reads request bodies of at most `max_body_bytes`."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._uploads: set[asyncio.Timeout] = set()
        self._deadline: float | None = None

    def stop(self, grace_secs: float) -> None:
        """Give the uploads in progress `grace_secs` to end."""
        self._deadline = asyncio.get_running_loop().time() + grace_secs
        for upload in self._uploads:
            upload.reschedule(self._deadline)

    async def read(self, request: Request) -> bytes:
        """Read the body as it was sent. Raises RequestError if it is too large (413) or the server stops (503)."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)
        try:
            async with asyncio.timeout_at(self._deadline) as upload:
                self._uploads.add(upload)
                with contextlib.ExitStack() as cleanup:
                    cleanup.callback(self._uploads.discard, upload)
                    return await self._collect(request)
        except TimeoutError:
            message = "the server is stopping, and the body of the request did not arrive in time"
            raise RequestError(Code.UNAVAILABLE, message) from None

    async def _collect(self, request: Request) -> bytes:
        chunks, num_bytes = [], 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > self._max_body_bytes:
                raise _too_large(self._max_body_bytes)
            chunks.append(chunk)
        return b"".join(chunks)

    def decompress(self, body: bytes, content_encoding: str) -> bytes:
        """Decompress a gzip body; other encodings are passed through, as in TensorFlow Serving.

        See net_http/server/internal/evhttp_request.cc. Raises RequestError if the result exceeds the limit (413) or the
        body is not valid gzip (400).
        """
        if "gzip" not in content_encoding:
            return body
        limit = min(self._max_body_bytes, MAX_UNCOMPRESSED_BYTES)
        stream = zlib.decompressobj(_GZIP_WINDOW_BITS)
        try:
            plain = stream.decompress(body, limit + 1)
        except zlib.error as e:
            raise invalid(f"the body is not valid gzip, although its Content-Encoding says so ({e})") from None
        if len(plain) > limit:
            raise _too_large(limit, " uncompressed")
        if not stream.eof or stream.unused_data:
            raise invalid("the body is not one complete gzip stream, although its Content-Encoding says so")
        return plain


def _too_large(limit: int, how: str = "") -> RequestError:
    return RequestError(
        Code.INVALID_ARGUMENT,
        f"the request body is larger than {limit} bytes{how}; send fewer or smaller images at a time, or start the "
        "server with a larger --max-body-mib",
        http_status=413,
    )
