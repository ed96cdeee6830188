"""One command at a time trains in a run directory, and each new run has a name of its own: with real processes."""

import concurrent.futures
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from tests.config.test_identity import SETTINGS
from trainer.config.config import Config, load_config
from trainer.errors import RunError
from trainer.run import claim
from trainer.run.run_dir import RunDir, RunInfo
from trainer.system import lease, lock

HOLDING_PROCESS = pathlib.Path(__file__).with_name("holding_process.py")
IDENTITY = "0" * 64
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts processes that hold a lock until they are ended."""
    started: list[subprocess.Popen[str]] = []

    def start(path: pathlib.Path, owner: str = "first", purpose: str = IDENTITY) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, str(HOLDING_PROCESS), str(path), owner, purpose],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def make_info(identity: str = IDENTITY, **changes: str) -> RunInfo:
    given = {"dataset_dir": "/data/a", "dataset_hash": "a" * 64, "precision": "float32", **changes}
    return RunInfo(
        name="run",
        identity=identity,
        class_names=["cat", "dog"],
        num_train_examples=10,
        image_size_px=32,
        weights="none",
        batch_norm="frozen",
        **given,
    )  # type: ignore[arg-type]


def hold_run(run: RunDir) -> None:
    with claim.hold_run(run, IDENTITY, note=lambda _: None):
        pass


def test_a_second_command_is_refused_with_who_holds_the_run_until_kill_9_frees_it(
    hold: Hold, tmp_path: pathlib.Path
) -> None:
    run = RunDir(tmp_path / "run")
    process = hold(run.path / claim.LOCK_NAME)
    who = rf"is being trained by process {process.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with pytest.raises(RunError, match=who):
        hold_run(run)
    with pytest.raises(RunError, match=who):
        claim.check_run_dir(run, IDENTITY, resume=True, differences=lambda: "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    hold_run(run)
    assert not run.path.exists(), "where nothing was begun, nothing is left"


def test_processes_of_one_command_share_a_run_and_others_wait_for_the_last_of_them(
    hold: Hold, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    launcher, chief = hold(run.path / claim.LOCK_NAME), hold(run.path / claim.LOCK_NAME)
    launcher.kill()
    launcher.wait()
    monkeypatch.setattr(claim, "_ORPHAN_SECS", 0.2)
    with pytest.raises(RunError, match=f"the workers of a command that has ended .process {launcher.pid} "):
        hold_run(run)
    monkeypatch.setattr(claim, "_ORPHAN_SECS", 600.0)
    notes: list[str] = []

    def note(message: str) -> None:
        notes.append(message)
        chief.kill()

    with claim.hold_run(run, IDENTITY, note=note):
        assert len(notes) == 1 and "waiting for its workers to end" in notes[0]


def test_a_second_command_waits_as_long_as_it_is_told(hold: Hold, tmp_path: pathlib.Path) -> None:
    run, notes = RunDir(tmp_path / "run"), []
    process = hold(run.path / claim.LOCK_NAME)

    def note(message: str) -> None:
        notes.append(message)
        process.kill()

    with claim.hold_run(run, IDENTITY, note=note, wait_secs=600):
        assert len(notes) == 1 and f"is being trained by process {process.pid}" in notes[0] and "600 s" in notes[0]


def test_another_host_is_kept_out_where_its_file_system_has_no_locks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    run = RunDir(tmp_path / "run")
    far = lock.Holder(host="far", pid=1, since="noon", owner="another", process="another-boot/pid:[1]/1-1")
    monkeypatch.setattr(lock.fcntl, "flock", without_locks)
    with lease.hold(run.path / claim.LEASE_NAME, far), pytest.raises(RunError, match="by process 1 on far since noon"):
        hold_run(run)
    hold_run(run)


def test_a_full_disk_leaves_no_empty_lease_that_the_next_command_would_watch(small_disk: pathlib.Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(2 << 20))
    holder = lock.Holder.of_this_process(owner="a command", purpose="")
    with pytest.raises(OSError, match="No space left"), lease.hold(small_disk / claim.LEASE_NAME, holder):
        pass
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_each_of_several_commands_in_one_second_gets_a_directory_of_its_own(tmp_path: pathlib.Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        runs = list(threads.map(lambda _: claim.claim_new_run(tmp_path / "runs"), range(64)))
    assert len({run.path for run in runs}) == 64
    assert all(run.path.is_dir() for run in runs)


def test_a_place_for_runs_that_cannot_be_one_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    with pytest.raises(RunError, match=r"runs is a file, .*give --run-dir"):
        claim.claim_new_run(tmp_path / "runs")
    with pytest.raises(RunError, match=r"runs is a file; give --run-dir"):
        claim.check_run_dir(RunDir(tmp_path / "runs"), IDENTITY, resume=True, differences=lambda: "")
    with pytest.raises(RunError, match=r"cannot be written .*give --run-dir another"):
        hold_run(RunDir(tmp_path / "runs" / "run"))


def test_a_command_that_was_killed_before_it_had_written_run_json_left_a_directory_to_begin_in(
    tmp_path: pathlib.Path,
) -> None:
    run = RunDir(tmp_path)
    for name in (claim.LOCK_NAME, "config.yaml", ".tmp-run.json-0a1b2c3d"):
        (tmp_path / name).write_text("")
    claim.check_run_dir(run, IDENTITY, resume=True, differences=lambda: "")
    for theirs in ("photo.jpg", claim.LOCK_NAME):
        (tmp_path / theirs).unlink() if theirs == claim.LOCK_NAME else (tmp_path / theirs).write_text("")
        with pytest.raises(RunError, match="holds files, but no run"):
            claim.check_run_dir(run, IDENTITY, resume=True, differences=lambda: "")
        (tmp_path / "photo.jpg").unlink(missing_ok=True)


def find(runs_dir: pathlib.Path, notes: list[str]) -> RunDir | None:
    return claim.find_unfinished_run(runs_dir, IDENTITY, Config(), num_train_steps=10, note=notes.append)


def test_a_run_of_another_version_or_none_at_all_is_told_and_left_out_of_the_search(tmp_path: pathlib.Path) -> None:
    for name in ("ours", "of another schema", "not JSON", "a folder", "a broken link"):
        (tmp_path / name).mkdir()
    (tmp_path / "a file").write_text("", encoding="utf-8")
    RunDir(tmp_path / "ours").create(Config(), make_info())
    document = json.loads((tmp_path / "ours" / "run.json").read_text(encoding="utf-8"))
    foreign = json.dumps({**document, "schema_version": 7})
    (tmp_path / "of another schema" / "run.json").write_text(foreign, encoding="utf-8")
    (tmp_path / "not JSON" / "run.json").write_text("{", encoding="utf-8")
    (tmp_path / "a folder" / "run.json").mkdir()
    (tmp_path / "a broken link" / "run.json").symlink_to("nowhere")
    notes: list[str] = []
    found = find(tmp_path, notes)
    assert found is not None and found.path == tmp_path / "ours"
    assert all("skipped in the search" in message for message in notes)
    told = {pathlib.Path(message.removeprefix("note: ").partition(" is left")[0]).parent.name for message in notes}
    assert told >= {"of another schema", "not JSON", "a folder"}


def test_the_same_command_typed_again_does_not_go_on_with_a_run_that_still_trains(
    hold: Hold, tmp_path: pathlib.Path
) -> None:
    run = RunDir(tmp_path / "run")
    process = hold(run.path / claim.LOCK_NAME)
    with pytest.raises(RunError, match=f"{run.path} is being trained by process {process.pid} .*; wait "):
        find(tmp_path, [])  # before it has written anything
    run.create(Config(), make_info())
    with pytest.raises(RunError, match=f"is being trained by process {process.pid} "):
        find(tmp_path, [])
    other = claim.find_unfinished_run(tmp_path, "1" * 64, Config(), num_train_steps=10, note=lambda _: None)
    assert other is None, "of another configuration it is none of ours"


def test_the_refusal_of_another_run_names_each_differing_setting_with_both_values(tmp_path: pathlib.Path) -> None:
    there, run = load_config(overrides=["train.seed=1", "optimizer.name=sgd"]), RunDir(tmp_path / "run")
    identity = there.identity(dataset_hash="a" * 64, precision="float32")
    run.create(there, make_info(identity))
    now = load_config(overrides=["train.seed=2", "optimizer.name=sgd", "features.views=3", "log.every_steps=3"])
    other = make_info(dataset_hash="b" * 64, precision="mixed_float16", head="keep")
    other = other.model_copy(update={"class_names": ["cat", "fox"], "num_train_examples": 20})
    assert claim.describe_differences(run, now, other) == (
        f"its dataset is {'a' * 64}, and now {'b' * 64}; its classes are ['cat', 'dog'], and now ['cat', 'fox']; "
        "it has 10 training images, and now 20; its precision is float32, and now mixed_float16; "
        "its model.head is replace, and now keep; its train.seed is 1, and now 2; its features.views is not set, and "
        "now 3"
    )
    moved = make_info(dataset_hash="b" * 64, dataset_dir="/data/b")
    assert "its dataset is /data/a, and now /data/b" in claim.describe_differences(run, there, moved)
    assert "another version of trainer" in claim.describe_differences(run, there, make_info("1" * 64))
    run.config_file.write_text(run.config_file.read_text().replace("seed: 1", "seed: 2"))
    told = claim.describe_differences(run, there, make_info(identity))
    assert told.endswith("; its config.yaml was changed since it began, and is to be as it was")


@pytest.mark.parametrize("name", [name for name, (_, verdict) in SETTINGS.items() if verdict == "decides"])
def test_each_setting_that_decides_is_named_with_both_values_in_whichever_direction(
    tmp_path: pathlib.Path, name: str
) -> None:
    section, key = name.split(".")
    changed = load_config(flags={section: {key: SETTINGS[name][0]}})
    for before, now in ((Config(), changed), (changed, Config())):
        run = RunDir(tmp_path / str(before is changed))
        run.create(before, make_info(before.identity(dataset_hash="a" * 64, precision="float32")))
        was, is_now = (getattr(getattr(config, section), key) for config in (before, now))
        shown = [claim._show(value) for value in (was, is_now)]
        assert claim.describe_differences(run, now, make_info()) == f"its {name} is {shown[0]}, and now {shown[1]}"
