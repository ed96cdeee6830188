"""Archives by address, from a real server on this machine that can be told to misbehave."""

import dataclasses
import hashlib
import http.server
import io
import os
import pathlib
import re
import socket
import tarfile
import threading
from collections.abc import Iterator

import pytest

from trainer.console.task_progress import show_nothing
from trainer.data.sources import CATALOGUE, Source, SourceOptions, open_source
from trainer.data.sources.archives import download
from trainer.errors import DataError


def flower_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("roses", "tulips"):
            for i in range(20):
                content = f"{name} {i}".encode() + os.urandom(5_000)
                info = tarfile.TarInfo(f"flower_photos/{name}/{i}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `requests` are the Range headers that came, None where there was none.

    knows_ranges: as a server should. cuts: after how many bytes it closes the connection, for each request.
    extra: bytes that it sends beyond the content, without saying so. status: of every answer.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = flower_archive()
        self.requests: list[str | None] = []
        self.knows_ranges = True
        self.cuts: list[int] = []
        self.extra = b""
        self.status = 200
        self.says_length = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/flower_photos.tgz?download=1"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/data/flower_photos.tgz")
            self.end_headers()
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.knows_ranges else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        content = self.server.content[start:] + self.server.extra
        self.send_response(206 if start else self.server.status)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}"
            )
        if self.server.says_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cuts.pop(0)] if self.server.cuts else content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "RETRY_SECS", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def workspace(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "workspace"


def staged(server: Server, workspace: pathlib.Path, sha256: str | None = None) -> Source:
    source = open_source(server.url, SourceOptions(sha256=sha256 or server.sha256))
    source.stage(workspace, show_nothing)
    return source


def check_flowers(source: Source) -> None:
    candidates = list(source.candidates())
    assert len(candidates) == 40
    for c in candidates:
        _, class_name, name = c.filename.split("/")
        assert c.class_names == (class_name,)
        assert source.read(c).startswith(f"{class_name} {name.removesuffix('.jpg')}".encode())


def test_an_archive_is_downloaded_verified_and_kept(server: Server, workspace: pathlib.Path) -> None:
    source = staged(server, workspace)
    check_flowers(source)
    assert (source.name, server.requests) == ("flower_photos", [None])
    check_flowers(staged(server, workspace))
    assert server.requests == [None]  # nothing was fetched again
    assert sorted(p.name for p in workspace.iterdir()) == [
        "archive.index", "archive.spool", f"download-{server.sha256[:16]}"
    ]  # fmt: skip


def test_progress_counts_the_bytes(server: Server, workspace: pathlib.Path) -> None:
    shown: dict[str, list[int]] = {}

    class Bar:
        def __init__(self, description: str, total: int) -> None:
            self.counted = shown.setdefault(description, [total, 0])

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, amount: int = 1) -> None:
            self.counted[1] += amount

    open_source(server.url, SourceOptions(sha256=server.sha256)).stage(workspace, Bar)
    size = len(server.content)
    assert shown == {name: [size, size] for name in ("downloading", "verifying", "indexing")}


def test_a_download_that_was_cut_goes_on_where_it_stopped(server: Server, workspace: pathlib.Path) -> None:
    server.cuts = [60_000, 50_000]
    check_flowers(staged(server, workspace))
    assert server.requests == [None, "bytes=60000-", "bytes=110000-"]


def test_a_download_of_a_killed_command_goes_on(server: Server, workspace: pathlib.Path) -> None:
    workspace.mkdir()
    (workspace / f"download-{server.sha256[:16]}.part").write_bytes(server.content[:70_000])
    check_flowers(staged(server, workspace))
    assert server.requests == ["bytes=70000-"]


def test_a_download_that_had_come_whole_is_not_fetched_again(server: Server, workspace: pathlib.Path) -> None:
    workspace.mkdir()
    (workspace / f"download-{server.sha256[:16]}.part").write_bytes(server.content)
    check_flowers(staged(server, workspace))
    assert server.requests == [f"bytes={len(server.content)}-"]


def test_a_server_that_knows_no_ranges_sends_all_again(server: Server, workspace: pathlib.Path) -> None:
    server.cuts, server.knows_ranges = [60_000], False
    check_flowers(staged(server, workspace))
    assert server.requests == [None, "bytes=60000-"]


def test_a_server_that_always_cuts_is_given_up_and_what_came_is_kept(server: Server, workspace: pathlib.Path) -> None:
    server.cuts = [1000] + [0] * 20
    with pytest.raises(DataError, match=r"cannot be downloaded from http://127.*; run the command again with a net"):
        staged(server, workspace)
    assert server.requests == [None] + ["bytes=1000-"] * 4
    assert (workspace / f"download-{server.sha256[:16]}.part").read_bytes() == server.content[:1000]


def test_another_file_than_was_promised_is_not_read(server: Server, workspace: pathlib.Path) -> None:
    with pytest.raises(DataError, match=f"has the SHA-256 {server.sha256}, expected 0000.*nothing of it was read"):
        staged(server, workspace, "0" * 64)
    assert list(workspace.iterdir()) == []


def test_a_file_that_was_damaged_on_the_way_can_be_had_again(server: Server, workspace: pathlib.Path) -> None:
    workspace.mkdir()
    (workspace / f"download-{server.sha256[:16]}.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="has the SHA-256"):
        staged(server, workspace)
    check_flowers(staged(server, workspace))


@pytest.mark.parametrize("says_length", [True, False])
def test_more_than_was_said_is_refused(
    server: Server, workspace: pathlib.Path, monkeypatch: pytest.MonkeyPatch, says_length: bool
) -> None:
    size = len(server.content)
    flowers = dataclasses.replace(CATALOGUE["flowers"], url=server.url, num_bytes=size, sha256=server.sha256)
    monkeypatch.setitem(CATALOGUE, "flowers", flowers)
    server.extra, server.says_length = b"x" * 10**7, says_length
    with pytest.raises(DataError, match=f"sends more than the expected {size:,} bytes"):
        open_source("flowers").stage(workspace, show_nothing)
    assert list(workspace.iterdir()) == []
    server.extra = b""
    source = open_source("flowers")
    source.stage(workspace, show_nothing)
    check_flowers(source)
    assert source.name == "flowers"


def test_an_answer_that_is_no_file_is_said(server: Server, workspace: pathlib.Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match=r"the archive cannot be downloaded from .*: the server answers 404 Not Found"):
        staged(server, workspace)
    server.status, server.content = 200, b"<html>please log in</html>"
    with pytest.raises(DataError, match="is neither a zip nor a tar"):
        staged(server, workspace)


def test_a_redirection_is_followed(server: Server, workspace: pathlib.Path) -> None:
    moved = f"http://127.0.0.1:{server.server_port}/moved"
    source = open_source(moved, SourceOptions(sha256=server.sha256))
    source.stage(workspace, show_nothing)
    check_flowers(source)


def test_an_address_without_a_checksum_is_refused_before_anything_is_fetched(server: Server) -> None:
    with pytest.raises(DataError, match="comes without a checksum; give its publisher's with --sha256"):
        open_source(server.url)
    assert server.requests == []


@pytest.mark.parametrize("name", CATALOGUE)
def test_without_a_network_the_catalogue_says_what_to_fetch(
    workspace: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The size, the address, and how a copy is given instead."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setenv("all_proxy", f"http://127.0.0.1:{taken.getsockname()[1]}")
        published = CATALOGUE[name]
        with pytest.raises(DataError) as caught:
            open_source(name).stage(workspace, show_nothing)
    message = str(caught.value)
    assert message.startswith(
        f"{name} ({published.file_name}, {published.num_bytes / 1e6:,.0f} MB) cannot be downloaded"
    )
    assert published.url in message
    assert message.endswith(f"run: trainer prepare /path/{published.file_name} --sha256 {published.sha256}")


def test_the_catalogue_is_whole() -> None:
    assert list(CATALOGUE) == ["flowers", "caltech101", "cats_vs_dogs"]
    for name, published in CATALOGUE.items():
        assert published.name == name
        assert re.fullmatch("[0-9a-f]{64}", published.sha256)
        assert published.url.startswith("https://")
        assert published.file_name.endswith((".tgz", ".zip"))
        assert published.num_bytes > 10**8
        assert published.license
