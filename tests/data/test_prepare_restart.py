"""A preparation that is killed or stopped goes on where it was, and ends with the same bytes."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.complete import IS_COMPLETE
from trainer.cli.app import app
from trainer.data.dataset.manifest import Manifest, is_prepared
from trainer.data.dataset.verify import verify_dataset
from trainer.data.preparation.prepare import Advances, PrepareOptions, prepare_dataset
from trainer.errors import DataError, TrainerError

pytestmark = pytest.mark.slow


def make_photos(folder: pathlib.Path, num_images: int) -> pathlib.Path:
    rng = np.random.default_rng(0)
    for i in range(num_images):
        path = folder / "abc"[i % 3] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> pathlib.Path:
    return make_photos(tmp_path / "photos", 120)


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "dataset"


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def work_folder(out: pathlib.Path) -> pathlib.Path:
    return out.with_name(f".{out.name}.preparing")


class Stop(Exception):
    """Ends a preparation from its progress."""


class StopsWhile:
    """Raises when so many of a stage are done; counts what is read."""

    def __init__(self, stage: str, after: int) -> None:
        self._stage, self._left, self._active = stage, after, False

    @contextlib.contextmanager
    def __call__(self, description: str, total: int) -> Iterator[Advances]:
        self._active = description == self._stage
        yield self

    def advance(self, amount: int = 1) -> None:
        if self._active:
            self._left -= amount
            if self._left < 0:
                raise Stop


def log_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are read from now on, in order."""
    from trainer.data.sources import Candidate, FileSource

    read, names = FileSource.read, []

    def logged(self: FileSource, candidate: Candidate) -> bytes:
        names.append(candidate.filename)
        return read(self, candidate)

    monkeypatch.setattr(FileSource, "read", logged)
    return names


# Forks: TensorFlow is imported once for all of them. Each child is killed after some of its own reads.
_KILL_AGAIN_AND_AGAIN = """
import json, os, pathlib, random, signal, sys, time
import tensorflow
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset
from trainer.data.sources import FileSource

source, out, log = sys.argv[1:4]
num_kills, seed = int(sys.argv[4]), int(sys.argv[5])
descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
read = FileSource.read

def slow_logged_read(self, candidate):
    os.write(descriptor, b".")
    time.sleep(0.01)
    return read(self, candidate)

FileSource.read = slow_logged_read
num_reads = lambda: os.path.getsize(log)
rng = random.Random(seed)
killed_after = []
for attempt in range(num_kills + 1):
    before = num_reads()
    child = os.fork()
    if child == 0:
        prepare_dataset(source, pathlib.Path(out), options=PrepareOptions(shard_bytes=20_000, num_workers=4))
        os._exit(0)
    enough = rng.randint(300, 600)
    status = 0
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if attempt < num_kills and num_reads() - before >= enough:
            time.sleep(rng.random() * 0.01)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed_after.append(num_reads() - before)
            assert not os.path.exists(os.path.join(out, "manifest.json"))
            break
        time.sleep(0.001)
print(json.dumps({"killed_after": killed_after, "num_reads": num_reads(), "status": status}))
"""


@pytest.mark.parametrize("seed", range(4 if IS_COMPLETE else 1))
def test_killed_again_and_again_it_ends_with_the_same_bytes_and_does_little_twice(
    tmp_path: pathlib.Path, out: pathlib.Path, seed: int
) -> None:
    source = make_photos(tmp_path / "photos", 1000)
    arguments = [str(source), str(out), str(tmp_path / "log"), "4", str(seed)]
    ended = subprocess.run(
        [sys.executable, "-c", _KILL_AGAIN_AND_AGAIN, *arguments], capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer["status"] == 0, ended.stderr
    assert len(answer["killed_after"]) == 4
    whole = tmp_path / "whole/dataset"
    prepare_dataset(str(source), whole, options=PrepareOptions(shard_bytes=20_000, num_workers=1))
    assert contents(out) == contents(whole)
    assert len(Manifest.load(out).splits["train"].shards) > 5
    assert not work_folder(out).exists()
    # Without going on, every kill would cost all the reads before it.
    num_twice = answer["num_reads"] - 2 * 1000
    assert 0 <= num_twice < sum(answer["killed_after"]) / 2


@pytest.mark.parametrize(("stage", "after"), [("checking", 60), ("writing", 50)])
def test_what_was_done_is_not_done_again(
    photos: pathlib.Path, out: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stage: str, after: int
) -> None:
    options = PrepareOptions(shard_bytes=2_000, num_workers=1)
    with pytest.raises(Stop):
        prepare_dataset(str(photos), out, options=options, progress=StopsWhile(stage, after))
    assert not out.exists()
    names, notes = log_reads(monkeypatch), []
    prepare_dataset(str(photos), out, options=options, note=notes.append)
    # The second reading of all that was not written, after the first reading of what was not checked.
    assert len(names) <= (120 - after + 30 + 120 if stage == "checking" else 120 - after + 30)
    assert "resuming the stopped preparation" in notes[0]
    whole = out.with_name("whole") / "dataset"
    prepare_dataset(str(photos), whole, options=options)
    assert contents(out) == contents(whole)


def test_finished_shards_are_not_written_again(photos: pathlib.Path, out: pathlib.Path) -> None:
    options = PrepareOptions(shard_bytes=2_000)
    with pytest.raises(Stop):
        prepare_dataset(str(photos), out, options=options, progress=StopsWhile("writing", 90))
    written = {path.name: path.stat().st_mtime_ns for path in (work_folder(out) / "dataset").iterdir()}
    (work_folder(out) / "dataset/.tmp-manifest.json-0123abcd").write_text("half of a manifest")
    manifest = prepare_dataset(str(photos), out, options=options)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    names = {name for shard in shards for name in (shard.file_name, shard.index_file_name)}
    assert {path.name for path in out.iterdir()} == {"manifest.json", *names}
    again = {name for name, time in written.items() if (out / name).stat().st_mtime_ns != time}
    assert len(written) > 8
    assert len(again) <= 2  # the shard in which it stopped, and its index


@pytest.mark.parametrize("change", ["an image", "its content", "the seed", "restart"])
def test_what_is_not_the_same_any_more_is_started_anew(
    photos: pathlib.Path, out: pathlib.Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with pytest.raises(Stop):
        prepare_dataset(str(photos), out, progress=StopsWhile("writing", 0))
    if change == "an image":
        (photos / "a/0000.png").rename(photos / "b/0000.png")
    if change == "its content":
        shutil.copy(photos / "a/0003.png", photos / "a/0000.png")
    options = PrepareOptions(seed=int(change == "the seed"))
    names = log_reads(monkeypatch)
    manifest = prepare_dataset(str(photos), out, options=options, restart=change == "restart")
    assert len(names) == 2 * 120
    whole = out.with_name("whole") / "dataset"
    assert prepare_dataset(str(photos), whole, options=options) == manifest
    assert contents(out) == contents(whole)


def test_a_larger_share_of_bad_files_goes_on_with_the_checks(
    photos: pathlib.Path, out: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a/bad.png").write_bytes(b"text")
    with pytest.raises(DataError, match="--max-bad-fraction"):
        prepare_dataset(str(photos), out, options=PrepareOptions(max_bad_fraction=0))
    names = log_reads(monkeypatch)
    prepare_dataset(str(photos), out, options=PrepareOptions(max_bad_fraction=0.5))
    assert len(names) == 120


def test_an_image_that_changes_meanwhile_ends_the_whole_preparation(photos: pathlib.Path, out: pathlib.Path) -> None:
    """What was found out of it is not worth going on with, also where the file's time and size do not show it."""
    times = (photos / "a/0000.png").stat()

    @contextlib.contextmanager
    def change_one(description: str, total: int) -> Iterator[Advances]:
        if description == "writing":
            content = bytearray((photos / "a/0000.png").read_bytes())
            content[-20] ^= 1
            (photos / "a/0000.png").write_bytes(content)
            os.utime(photos / "a/0000.png", ns=(times.st_atime_ns, times.st_mtime_ns))
        yield StopsWhile("", 0)

    with pytest.raises(DataError, match=r"a/0000\.png changed while"):
        prepare_dataset(str(photos), out, progress=change_one)
    manifest = prepare_dataset(str(photos), out, options=PrepareOptions(max_bad_fraction=0.1))
    assert [bad.path for bad in manifest.bad_files] == ["a/0000.png"]


def test_ctrl_c_leaves_no_dataset_and_the_same_command_goes_on(photos: pathlib.Path, out: pathlib.Path) -> None:
    @contextlib.contextmanager
    def interrupted(description: str, total: int) -> Iterator[Advances]:
        if description == "writing":
            raise KeyboardInterrupt
        yield StopsWhile("", 0)

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(str(photos), out, progress=interrupted)
    assert {path.name for path in out.parent.iterdir()} == {"photos", work_folder(out).name}
    result = CliRunner().invoke(app, ["prepare", str(photos), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "120 of 120 images are checked" in result.stderr
    assert {path.name for path in out.parent.iterdir()} == {"photos", "dataset"}


def test_bad_input_leaves_nothing_at_all(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    (tmp_path / "photos/a").mkdir(parents=True)
    with pytest.raises(DataError, match="at least 2"):
        prepare_dataset(str(tmp_path / "photos"), out)
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


def test_two_at_a_time_of_one_dataset_is_an_error_that_says_so(photos: pathlib.Path, out: pathlib.Path) -> None:
    errors: list[str] = []

    @contextlib.contextmanager
    def start_a_second(description: str, total: int) -> Iterator[Advances]:
        with pytest.raises(DataError) as caught:
            prepare_dataset(str(photos), out)
        errors.append(str(caught.value))
        yield StopsWhile("", 0)

    prepare_dataset(str(photos), out, progress=start_a_second)
    assert verify_dataset(out).passed
    assert [f"{out} is being prepared by process {os.getpid()} on " in error for error in errors] == [True, True]
    prepare_dataset(str(photos), out.with_name("other"))


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    source = make_photos(tmp_path / "source", 400)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, hard))
    try:
        with pytest.raises(TrainerError, match=r"dataset cannot be written: .*run the same command again to resume"):
            prepare_dataset(str(source), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists()
    prepare_dataset(str(source), out)
    assert is_prepared(out)


def test_a_kill_between_the_two_renames_gives_the_old_dataset_back(photos: pathlib.Path, out: pathlib.Path) -> None:
    first = prepare_dataset(str(photos), out)
    with pytest.raises(Stop):
        prepare_dataset(
            str(photos), out, options=PrepareOptions(seed=1), overwrite=True, progress=StopsWhile("writing", 0)
        )
    out.rename(work_folder(out) / "replaced")  # as it would be found
    with pytest.raises(DataError, match="holds a prepared dataset already"):
        prepare_dataset(str(photos), out, options=PrepareOptions(seed=1))
    assert Manifest.load(out) == first
    assert prepare_dataset(str(photos), out, options=PrepareOptions(seed=1), overwrite=True).seed == 1


def test_a_state_that_is_no_database_any_more_is_started_anew(photos: pathlib.Path, out: pathlib.Path) -> None:
    with pytest.raises(Stop):
        prepare_dataset(str(photos), out, progress=StopsWhile("writing", 0))
    (work_folder(out) / "state.sqlite").write_bytes(b"not a database" * 1000)
    prepare_dataset(str(photos), out)
    assert is_prepared(out)
