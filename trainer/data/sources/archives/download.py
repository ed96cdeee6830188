"""Download an archive over HTTP into the workspace, resuming after interruptions and verifying the checksum.

A broken connection or a kill leaves `<file>.part`; the next call requests the missing range (RFC 9110, section 14.2),
or starts over if the server does not support ranges.
"""

import http
import os
import pathlib
import shutil
import time
from typing import TYPE_CHECKING

from trainer.console.task_progress import Advances, ShowProgress
from trainer.data.sources.archives.staging import sha256_of
from trainer.data.sources.catalogue import Published
from trainer.errors import DataError
from trainer.system import atomic

if TYPE_CHECKING:
    import httpx

_MAX_ATTEMPTS = 5
RETRY_SECS = 1.0
_CONNECT_SECS, _READ_SECS = 20.0, 60.0
MAX_BYTES = 2**41


def download(
    url: str, sha256: str, workspace: pathlib.Path, progress: ShowProgress, *, published: Published | None = None
) -> pathlib.Path:
    """Download `url` into `workspace`, unless an earlier call did, and verify its checksum.

    `published` gives the size, beyond which a download is refused, and a name for messages.

    Raises:
        DataError: there is no network, the server does not have the file, or it has another checksum or size.
    """
    target = workspace / f"download-{sha256[:16]}"
    if target.is_file():
        return target
    part = target.with_suffix(".part")
    fetch = _Fetch(url, part, published)
    fetch.run(progress)
    found = sha256_of(part, progress)
    if found != sha256:
        num_bytes = part.stat().st_size
        part.unlink()
        raise DataError(
            f"the file at {url} ({num_bytes:,} bytes) has the SHA-256 {found}, expected {sha256}; correct --sha256 if "
            "its publisher says so, or get the file elsewhere: nothing of it was read"
        )
    with part.open("rb") as f:
        os.fsync(f.fileno())
    os.replace(part, target)
    atomic.sync_directory(workspace)
    return target


class _Fetch:
    """A download that appends to `part` until it is complete."""

    def __init__(self, url: str, part: pathlib.Path, published: Published | None) -> None:
        self._url = url
        self._part = part
        self._published = published
        self._max_bytes = published.num_bytes if published else MAX_BYTES

    def run(self, progress: ShowProgress) -> None:
        """Download the rest of the file; raise DataError if that is impossible."""
        import httpx

        if self._published and self._num_bytes > self._max_bytes:
            self._part.unlink()
        if self._published and self._num_bytes == self._max_bytes:
            return
        timeout = httpx.Timeout(_READ_SECS, connect=_CONNECT_SECS)
        num_failures = 0
        with httpx.Client(follow_redirects=True, timeout=timeout) as client:
            while True:
                before = self._num_bytes
                try:
                    self._request(client, progress)
                    return
                except httpx.InvalidURL as e:
                    raise DataError(f"{self._url} is not a URL ({e}); correct it") from None
                except httpx.HTTPError as e:
                    # As long as there is progress, the connection may break any number of times.
                    num_failures = 1 if self._num_bytes > before else num_failures + 1
                    unreachable = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol)
                    if num_failures == _MAX_ATTEMPTS or isinstance(e, unreachable):
                        raise self._unavailable(str(e) or type(e).__name__) from None
                    time.sleep(RETRY_SECS * (num_failures - 1))

    @property
    def _num_bytes(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _request(self, client: "httpx.Client", progress: ShowProgress) -> None:
        start = self._num_bytes
        # Without content encoding, which could expand without bound.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with client.stream("GET", self._url, headers=headers) as response:
            if response.status_code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                return  # the file is complete; the checksum is verified later
            if response.status_code not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
                raise self._unavailable(f"the server answers {response.status_code} {response.reason_phrase}")
            if not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
                start = 0
            length = response.headers.get("content-length", "")
            total = start + int(length) if length.isdigit() else None
            self._check_size(start if total is None else total)
            with progress("downloading", total) as shown:
                shown.advance(start)
                self._append(response, start, shown)

    def _append(self, response: "httpx.Response", start: int, shown: Advances) -> None:
        with self._part.open("r+b" if start else "wb") as f:
            f.seek(start)
            for block in response.iter_raw():  # unbuffered: buffered data would be lost with the connection
                self._check_size(f.tell() + len(block))
                f.write(block)
                shown.advance(len(block))

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            self._part.unlink(missing_ok=True)
            raise DataError(
                f"{self._url} sends more than the expected {self._max_bytes:,} bytes; get the file elsewhere"
            )
        free = shutil.disk_usage(self._part.parent).free + self._num_bytes
        if num_bytes > free:
            raise DataError(f"{self._url} has {num_bytes:,} bytes, and {self._part.parent} has room for {free:,}")

    def _unavailable(self, reason: str) -> DataError:
        if self._published:
            what = f"{self._published.name} ({self._published.file_name}, {self._published.num_bytes / 1e6:,.0f} MB)"
            copy = f"/path/{self._published.file_name} --sha256 {self._published.sha256}"
        else:
            what, copy = "the archive", "/path/of/the/archive --sha256 ..."
        return DataError(
            f"{what} cannot be downloaded from {self._url}: {reason}; run the command again with a network, to "
            f"resume, or copy the file here and run: trainer prepare {copy}"
        )
