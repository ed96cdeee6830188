"""Full disks, read-only and vanished directories, slow storage: docs/faults.md, line by line."""

import os
import pathlib
import subprocess
import threading

import pytest

from tests.event_files import scalars
from trainer.config.config import Config, load_config
from trainer.distribute.launchers.output_log import OutputLog
from trainer.errors import RunError, StorageError
from trainer.run import checkpoint_saver, claim, metric_writers
from trainer.run.checkpoint import Checkpoint, CheckpointInfo
from trainer.run.checkpoint_saver import CheckpointSaver
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.metric_writers import MetricsLog, TensorBoardWriter, read_metrics
from trainer.run.run_dir import RunDir, RunInfo


def fill(disk: pathlib.Path) -> pathlib.Path:
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 << 20))
    return ballast


def make_checkpoint(step: int) -> Checkpoint:
    info = CheckpointInfo(
        global_step=step, identity="i", num_replicas=1, loss_scale=1.0, num_good_steps=0, num_skipped_steps=0
    )
    return Checkpoint(info, {}, {}, {})


def make_saver(run_dir: pathlib.Path, told: list[str]) -> CheckpointSaver:
    return CheckpointSaver(CheckpointStore(run_dir / "checkpoints", keep=2, best_metric="accuracy"), note=told.append)


def test_metrics_wait_in_memory_for_room_on_a_full_disk(small_disk: pathlib.Path) -> None:
    path, told = small_disk / "metrics.jsonl", []
    log = MetricsLog(path, note=told.append)
    log.write(1, "train", {"loss": 1.0})
    # What is left of the last page takes some lines.
    ballast = fill(small_disk)
    for step in range(2, 102):
        log.write(step, "train", {"loss": 1.0})
    assert len(told) == 1 and "No space left on device; 0 MiB free); they are kept in memory" in told[0]
    assert read_metrics(path), "whole lines alone"
    assert path.read_bytes().endswith(b"\n")
    saver = make_saver(small_disk, told)
    saver.before_save = log.flush
    saver.save(make_checkpoint(101))
    assert "the checkpoint of step 101 was not saved, since the metrics before it could not be written" in told[1]
    with pytest.raises(StorageError, match=r"\d+ lines of metrics could not be written to .*make room and start the"):
        log.close()
    ballast.unlink()
    log = MetricsLog(path, note=told.append)
    log.truncate_after(1)
    ballast = fill(small_disk)
    for step in range(2, 102):
        log.write(step, "train", {"loss": 1.0})
    ballast.unlink()
    log.write(102, "train", {"loss": 1.0})
    assert "lines that could not be written before are written now" in told[-1]
    log.close()
    assert [m["step"] for m in read_metrics(path)] == list(range(1, 103))


@pytest.mark.parametrize("is_next_step_written", [True, False])
def test_tensorboard_waits_for_room_and_shows_each_step_once(
    small_disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch, is_next_step_written: bool
) -> None:
    told: list[str] = []
    writer = TensorBoardWriter(small_disk / "tensorboard", note=told.append)
    writer.write(1, "train", {"loss": 1.0, "accuracy": 1.0})
    ballast = fill(small_disk)
    for step in range(2, 202):
        writer.write(step, "train", {"loss": 1.0, "accuracy": 1.0})
    assert len(told) == 1 and "could not be written for TensorBoard" in told[0] and "No space left" in told[0]
    ballast.unlink()
    if is_next_step_written:
        monkeypatch.setattr(metric_writers, "_RETRY_SECS", 0.0)
    writer.write(202, "train", {"loss": 1.0, "accuracy": 1.0})
    seen = scalars(small_disk / "tensorboard" / "train")
    assert (len(seen["loss"]) == 202) == is_next_step_written
    writer.close()
    seen = {tag: sorted(steps) for tag, steps in scalars(small_disk / "tensorboard" / "train").items()}
    assert seen == {tag: list(range(1, 203)) for tag in ("loss", "accuracy")}
    assert len(told) == 1


def test_the_output_of_a_worker_is_read_on_when_its_log_cannot_be_written(small_disk: pathlib.Path) -> None:
    told: list[str] = []
    with OutputLog(small_disk / "worker-00000.log", told.append) as log:
        log.write(b"first\n")
        ballast = fill(small_disk)
        for _ in range(1000):
            log.write(b"a line of a worker\n")
        assert len(told) == 1 and "No space left on device; 0 MiB free" in told[0]
        ballast.unlink()
        log.write(b"last\n")
    lines = (small_disk / "worker-00000.log").read_text().splitlines()
    assert lines[0] == "first" and lines[-1] == "last" and "lines could not be written here" in lines[-2]
    with OutputLog(pathlib.Path("/nowhere/worker.log"), told.append) as log:
        log.write(b"a line\n")
    assert "/nowhere/worker.log (No such file or directory" in told[-1]


def test_a_read_only_run_directory_is_refused_before_the_start(small_disk: pathlib.Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=600)
    with (
        pytest.raises(RunError, match=r"cannot be written \(Read-only file system\); give --run-dir another"),
        claim.hold_run(RunDir(small_disk / "run"), "i", note=print),
    ):
        pass


def test_a_directory_that_becomes_read_only_keeps_its_checkpoints_and_says_so(small_disk: pathlib.Path) -> None:
    told: list[str] = []
    saver = make_saver(small_disk, told)
    saver.save(make_checkpoint(1), is_last=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=600)
    with pytest.raises(StorageError, match=r"Read-only file system.* the one of step 1 stands"):
        saver.save(make_checkpoint(2), is_last=True)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True, timeout=600)
    saver.save(make_checkpoint(3), is_last=True)
    assert saver.store.steps() == [1, 3]


def test_a_run_directory_that_vanishes_is_noticed_and_not_made_anew(tmp_path: pathlib.Path) -> None:
    run, told = tmp_path / "run", []
    log, saver = MetricsLog(run / "metrics.jsonl", note=told.append), make_saver(run, told)
    log.write(1, "train", {"loss": 1.0})
    saver.before_save = log.flush
    run.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "metrics.jsonl").unlink()
    log.write(2, "train", {"loss": 1.0})
    assert "metrics.jsonl (No such file or directory; the directory is gone); they are kept" in told[0]
    with pytest.raises(StorageError, match="the directory is gone"):
        saver.save(make_checkpoint(1), is_last=True)
    saver.before_save = lambda: None
    with pytest.raises(StorageError, match="the directory is gone"):
        saver.save(make_checkpoint(1), is_last=True)
    assert not run.exists()
    with pytest.raises(StorageError, match="1 lines of metrics could not be written"):
        log.close()


def test_a_save_that_takes_long_is_told_with_the_time_that_training_waited(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    saver, may_write = make_saver(tmp_path, told), threading.Event()
    save = saver.store.save
    monkeypatch.setattr(saver.store, "save", lambda checkpoint: (may_write.wait(600), save(checkpoint)))
    monkeypatch.setattr(checkpoint_saver, "_LONG_WAIT_SECS", 0.0)
    saver.save(make_checkpoint(1))
    assert saver.is_saving
    threading.Timer(0.2, may_write.set).start()
    saver.save(make_checkpoint(2), is_last=True)
    assert len(told) == 1 and "before the checkpoint of step 2, since that of step 1 took" in told[0]
    assert saver.store.steps() == [1, 2] and not saver.is_saving


def test_any_file_that_cannot_be_written_ends_a_command_with_a_sentence_and_status_1(
    small_disk: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from trainer.cli import app

    def write_on_a_full_disk(**_: object) -> None:
        fill(small_disk).write_bytes(bytes(2 << 20))

    monkeypatch.setattr(app, "app", write_on_a_full_disk)
    monkeypatch.setattr("sys.argv", ["trainer", "launch"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    told = capfd.readouterr().err
    assert ended.value.code == StorageError.exit_status == 1
    assert "error: " in told and "No space left on device" in told and "Traceback" not in told


@pytest.mark.parametrize("killed_at", range(4))
def test_a_run_taken_further_is_the_shorter_or_the_longer_one_at_every_moment(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    facts = {"dataset_hash": "d" * 64, "precision": "float32"}
    configs = [load_config(overrides=[f"train.epochs={epochs}"]) for epochs in (10, 20)]

    def info_of(config: Config) -> RunInfo:
        return RunInfo(
            name="run", identity=config.identity(**facts), dataset_dir="d", class_names=["a"], num_train_examples=1,
            image_size_px=32, weights="none", batch_norm="frozen", **facts,
        )  # fmt: skip

    run = RunDir(tmp_path / "run")
    run.create(configs[0], info_of(configs[0]))
    replace, num_calls = os.replace, 0

    def killed(*arguments: object) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > killed_at:
            raise KeyboardInterrupt
        replace(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        try:
            run.create(configs[1], info_of(configs[1]))
        except KeyboardInterrupt:
            assert killed_at < 3
        else:
            assert killed_at == 3
    is_longer = killed_at >= 2
    assert run.config() == configs[is_longer]
    assert run.identity() == run.info().identity == configs[is_longer].identity(**facts)
    run.create(configs[is_longer], info_of(configs[is_longer]))
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "run.json"]
    assert load_config(run.config_file) == configs[is_longer]
