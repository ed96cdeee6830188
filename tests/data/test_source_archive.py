"""Zip and tar archives of folders: what is found in them, that it is what lies there, and that it is found again."""

import concurrent.futures
import gzip
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping

import hypothesis
import hypothesis.strategies as st
import pytest

from trainer.console.task_progress import show_nothing
from trainer.data.sources import CATALOGUE, Candidate, Source, SourceOptions, open_source
from trainer.data.sources.archives.staging import staging_into
from trainer.errors import DataError, TrainerError

pytestmark = pytest.mark.slow

Files = Mapping[str, bytes]
TREE = {"cat/1.jpg": b"one", "cat/deep/er/2": b"two" * 50_000, "dog/3.jpg": b"", "dog/.hidden": b"x", "README": b"x"}


def tar_of(files: Files, mode: str = "w") -> bytes:
    """A name that ends with a slash is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: Files, method: int = zipfile.ZIP_DEFLATED, prefix: bytes = b"", comment: bytes = b"") -> bytes:
    buffer = io.BytesIO(prefix)
    buffer.seek(len(prefix))
    with zipfile.ZipFile(buffer, "a" if prefix else "w", method) as z:
        z.comment = comment
        for name, content in files.items():
            z.writestr(name, content)
    return buffer.getvalue()


PACKED = {
    "tar": tar_of,
    "tar.gz": lambda files: tar_of(files, "w:gz"),
    "tgz": lambda files: tar_of(files, "w:gz"),
    "tar.bz2": lambda files: tar_of(files, "w:bz2"),
    "tar.xz": lambda files: tar_of(files, "w:xz"),
    "zip": zip_of,
    "stored.zip": lambda files: zip_of(files, zipfile.ZIP_STORED),
    "with-program.zip": lambda files: zip_of(files, prefix=b"#!/bin/sh\n" * 99, comment=b"hello"),
}


@pytest.fixture(params=PACKED)
def packed(request: pytest.FixtureRequest, tmp_path: pathlib.Path):
    """Writes files as one kind of archive."""

    def write(files: Files) -> pathlib.Path:
        path = tmp_path / f"photos.{request.param}"
        path.write_bytes(PACKED[request.param](files))
        return path

    return write


def staged(path: pathlib.Path | str, workspace: pathlib.Path | None = None, sha256: str | None = None) -> Source:
    source = open_source(str(path), SourceOptions(sha256=sha256))
    source.stage(workspace or pathlib.Path(path).parent / "workspace", show_nothing)
    return source


def contents(source: Source) -> dict[str, tuple[str, str | None, bytes]]:
    found = {}
    for c in source.candidates():
        # As `prepare` keeps it: what is not of the contract may be lost on the way.
        again = Candidate(filename=c.filename, class_names=c.class_names, locator=c.locator)
        assert c.filename not in found
        found[c.filename] = (c.class_names[0], c.split, source.read(again))
    return found


def test_an_archive_gives_what_its_folder_would(packed) -> None:
    source = staged(packed(TREE))
    assert contents(source) == {
        "cat/1.jpg": ("cat", None, b"one"),
        "cat/deep/er/2": ("cat", None, b"two" * 50_000),
        "dog/3.jpg": ("dog", None, b""),
    }
    assert source.class_names == ["cat", "dog"]
    assert source.name.startswith("photos")


def test_many_threads_read_at_once(packed) -> None:
    files = {f"{'ab'[i % 2]}/{i}": bytes([i]) * (100 + 3000 * i) for i in range(60)}
    source = staged(packed(files))
    candidates = list(source.candidates()) * 5
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, candidates))
    assert [files[c.filename] for c in candidates] == read


def test_one_folder_around_all_is_passed_over_and_splits_are_kept(packed) -> None:
    names = ["train/cat/1", "train/dog/2", "val/cat/3", "test/dog/sub/4", "test/beside"]
    files = {f"./photos/v1/{name}": name.encode() for name in names} | {"LICENSE": b"", "__MACOSX/photos/._v1": b""}
    source = staged(packed(files))
    assert contents(source) == {
        "photos/v1/train/cat/1": ("cat", None, b"train/cat/1"),
        "photos/v1/train/dog/2": ("dog", None, b"train/dog/2"),
        "photos/v1/val/cat/3": ("cat", "validation", b"val/cat/3"),
        "photos/v1/test/dog/sub/4": ("dog", "test", b"test/dog/sub/4"),
    }
    assert source.class_names == ["cat", "dog"]


def test_a_class_folder_without_files_still_counts_as_a_class(packed) -> None:
    assert staged(packed({"top/": b"", "top/cat/1": b"1", "top/dog/": b""})).class_names == ["cat", "dog"]


@pytest.mark.parametrize("inner", ["tar.gz", "zip", "tar"])
def test_an_archive_that_holds_one_archive_is_that_archive(packed, inner: str) -> None:
    path = packed({f"data/images.{inner}": PACKED[inner]({f"images/{name}": TREE[name] for name in TREE})})
    found = contents(staged(path))
    assert {name: found[name][2] for name in found} == {
        "images/cat/1.jpg": b"one",
        "images/cat/deep/er/2": b"two" * 50_000,
        "images/dog/3.jpg": b"",
    }


def test_an_archive_that_holds_several_asks_for_one(packed) -> None:
    path = packed({"a/x.zip": b"PK", "a/y.tar": b""})
    with pytest.raises(DataError, match=r"holds 2 archives, such as a/x.zip, .*; unpack the one with the images"):
        staged(path)


def test_an_archive_without_folders_says_what_was_expected(packed) -> None:
    with pytest.raises(DataError, match="holds 2 files and no folders of them; expected one folder of images per"):
        staged(packed({"1.jpg": b"", "2.jpg": b""}))


def test_a_published_archive_is_known_by_its_checksum(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local copy of caltech-101.zip, whose images lie in one of two archives, beside a folder that is no class."""
    images = {f"101_ObjectCategories/{name}/1.jpg": name.encode() for name in ("ant", "BACKGROUND_Google", "bass")}
    path = tmp_path / "copy.zip"
    inner = {"caltech-101/101_ObjectCategories.tar.gz": tar_of(images, "w:gz"), "caltech-101/Annotations.tar": b""}
    path.write_bytes(zip_of(inner))
    with pytest.raises(DataError, match="holds 2 archives"):
        staged(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    published = CATALOGUE["caltech101"]
    monkeypatch.setitem(CATALOGUE, "caltech101", type(published)(**{**vars(published), "sha256": sha256}))
    source = staged(path, tmp_path / "w", sha256.upper())
    assert source.class_names == ["ant", "bass"]
    assert sorted(contents(source)) == ["101_ObjectCategories/ant/1.jpg", "101_ObjectCategories/bass/1.jpg"]


def test_a_wrong_checksum_is_found_before_anything_is_read(packed) -> None:
    path = packed(TREE)
    with pytest.raises(DataError, match=r"has the SHA-256 [0-9a-f]{64} where --sha256 says 0000"):
        staged(path, sha256="0" * 64)
    assert list((path.parent / "workspace").iterdir()) == []
    with pytest.raises(DataError, match="expected 64 hexadecimal digits"):
        open_source(str(path), SourceOptions(sha256="123"))


def test_what_is_staged_is_used_again_and_only_for_the_same_archive(packed) -> None:
    path = packed(TREE)
    workspace = path.parent / "workspace"
    first = contents(staged(path))
    before = {file: file.stat().st_mtime_ns for file in workspace.iterdir()}
    assert contents(staged(path)) == first
    assert {file: file.stat().st_mtime_ns for file in workspace.iterdir()} == before
    path.write_bytes(path.read_bytes())  # the same, but who knows
    os.utime(path, ns=(1, 1))
    assert contents(staged(path)) == first
    assert (workspace / "archive.index").stat().st_mtime_ns != before[workspace / "archive.index"]
    other = packed({"a/1": b"new", "b/2": b"newer"})
    assert [content for *_, content in contents(staged(other)).values()] == [b"new", b"newer"]


def test_a_stage_that_was_interrupted_starts_over(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "photos.tgz"
    path.write_bytes(tar_of({f"{kind}/{i}": os.urandom(10_000) for kind in "ab" for i in range(20)}, "w:gz"))
    workspace = tmp_path / "workspace"

    class Interrupted(Exception):
        pass

    class Interrupting:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, amount: int = 1) -> None:
            raise Interrupted

    with pytest.raises(Interrupted):
        open_source(str(path)).stage(workspace, lambda description, total: Interrupting())
    assert list(workspace.iterdir()) == []
    # What a kill leaves: half-written files under temporary names.
    for name in (".tmp-archive.spool", ".tmp-archive.index"):
        (workspace / name).write_bytes(b"half" * 1000)
    assert len(contents(staged(path))) == 40
    assert sorted(file.name for file in workspace.iterdir()) == ["archive.index", "archive.spool"]


def test_a_spool_that_was_changed_is_noticed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "photos.tgz"
    path.write_bytes(tar_of({"a/1": b"content", "b/2": b"more"}, "w:gz"))
    source = staged(path)
    spool = tmp_path / "workspace/archive.spool"
    spool.write_bytes(spool.read_bytes().replace(b"content", b"kontent"))
    one, two = source.candidates()
    with pytest.raises(OSError, match="have changed"):
        source.read(one)
    assert source.read(two) == b"more"


def test_a_large_zip_uses_zip64(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as z:
        for name in ("a/1", "b/2"):
            with z.open(name, "w", force_zip64=True) as f:
                f.write(name.encode())
        # More entries than the plain record at the end can count.
        for i in range(66_000):
            z.writestr(f"b/{i:06}.jpg", b"")
    found = staged(path)
    assert sum(1 for _ in found.candidates()) == 66_002
    assert {c.filename: found.read(c) for c in found.candidates() if c.filename in ("a/1", "b/2")} == {
        "a/1": b"a/1",
        "b/2": b"b/2",
    }


@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@hypothesis.given(
    files=st.dictionaries(
        st.tuples(st.sampled_from(["a", "b"]), st.text("cdé/漢", min_size=1, max_size=60)).map(
            lambda parts: "/".join(part for part in "/".join(parts).split("/") if part)
        ),
        st.binary(max_size=300),
        max_size=6,
    ),
    kind=st.sampled_from(["tar", "tgz", "zip", "stored.zip"]),
)
def test_any_tree_comes_back_whole(tmp_path: pathlib.Path, files: dict[str, bytes], kind: str) -> None:
    """Also names that need the long forms of the formats."""
    files = {"top/a/0": b"0", "top/b/0": b"0"} | {f"top/{name}/x" * 3: content for name, content in files.items()}
    path = tmp_path / f"photos.{kind}"
    path.write_bytes(PACKED[kind](files))
    assert {name: content for name, (_, _, content) in contents(staged(path)).items()} == files


@pytest.mark.parametrize(
    ("kind", "names"),
    [("tgz", [b"caf\xe9/1", b"dog/1"]), ("zip", [b"caf\xc3\xa9/1", b"dog/1"])],
)
def test_names_that_are_not_utf8_are_kept_as_bytes(tmp_path: pathlib.Path, kind: str, names: list[bytes]) -> None:
    path = tmp_path / f"photos.{kind}"
    path.write_bytes(PACKED[kind]({os.fsdecode(name): name for name in names}))
    found = contents(staged(path))
    assert {os.fsencode(name): content for name, (_, _, content) in found.items()} == {name: name for name in names}


def test_what_is_no_archive_says_what_was_expected(tmp_path: pathlib.Path) -> None:
    for name, content in (("photos.tar", b"no tar"), ("photos.zip.tgz", b"\0" * 600)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="is neither a zip nor a tar"):
            open_source(str(tmp_path / name))
    (tmp_path / "1.jpg.gz").write_bytes(gzip.compress(b"an image" * 100))
    with pytest.raises(DataError, match="is not a tar, or is damaged"):
        staged(tmp_path / "1.jpg.gz")


PEAK_OF_AN_ARCHIVE = r"""
import pathlib, re, sys
from trainer.data.sources import open_source
from trainer.console.task_progress import show_nothing
source = open_source(sys.argv[1])
source.stage(pathlib.Path(sys.argv[2]), show_nothing)
count = sum(1 for _ in source.candidates())
# Not getrusage: its peak is that of the process before exec, too.
print(count, re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


def peak_kilobytes(path: pathlib.Path, count: int) -> int:
    command = [sys.executable, "-c", PEAK_OF_AN_ARCHIVE, str(path), str(path.with_suffix(".workspace"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, peak = map(int, done.stdout.split())
    assert found == count
    return peak


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_memory_does_not_grow_with_the_members(tmp_path: pathlib.Path, kind: str) -> None:
    peaks = []
    for count in (100, 40_000):
        path = tmp_path / f"{count}.{kind}"
        path.write_bytes(PACKED[kind]({f"{'ab'[i % 2]}/{i:040}.jpg": b"x" for i in range(count)}))
        peaks.append(peak_kilobytes(path, count))
    assert peaks[1] < peaks[0] + 8_000  # kB; Python's zipfile and tarfile hold over 20,000


def test_a_workspace_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    workspace = tmp_path / "work"
    workspace.touch()
    with pytest.raises(TrainerError, match=r"photos cannot be staged in .*work: "), staging_into(workspace, "photos"):
        pass
