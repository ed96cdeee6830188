"""A run in this process that a signal stops, or whose memory does not suffice: it ends as if nothing had happened."""

import json
import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import small_backbone
from trainer.config.config import load_config
from trainer.errors import OutOfMemoryError, OutOfMemoryRestart, StoppedOnRequest, TrainingError
from trainer.launch import job
from trainer.launch.plan_run import PlannedRun, plan_run
from trainer.launch.run_session import RunSession
from trainer.launch.start_run import start_run, train_session
from trainer.run.checkpoint_store import CheckpointStore
from trainer.step.forward_backward import ForwardBackward
from trainer.step.state_update import StateUpdate
from trainer.training.actions import LogMetrics

pytestmark = pytest.mark.slow

SMALL = [
    "distribute.device=cpu",
    *small_backbone.SETTINGS,
    "model.image_size_px=32",
    "model.trainable=head",
    "train.epochs=1",
    "train.global_batch_size=50",
    "log.every_steps=1",
]
# Of the 50 examples of a step: two parts of 26 and 24 fit.
ROOM = 30


def no_note(_: str) -> None: ...


def plan(digits: pathlib.Path, run_dir: pathlib.Path, *more: str) -> PlannedRun:
    config = load_config(overrides=[*SMALL, f"data.path={digits}", *more])
    return plan_run(config, run_dir=run_dir, resume=True, note=no_note)


def weights(planned: PlannedRun) -> dict[str, Any]:
    store = CheckpointStore.of_run(planned.run, planned.config.checkpoint)
    return store.load(max(store.steps())).model


def losses(planned: PlannedRun) -> list[tuple[float, float]]:
    lines = map(json.loads, planned.run.metrics_file.read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]


@pytest.fixture(scope="module")
def undisturbed(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> PlannedRun:
    planned = plan(digits, tmp_path_factory.mktemp("runs") / "undisturbed")
    start_run(planned, no_note)
    return planned


def lack_memory() -> tf.Tensor:
    """A scalar whose computation fails as that of a tensor too large, at once: TensorFlow tries those for 10 s."""

    def fail() -> np.float32:
        raise MemoryError("a tensor too large")

    return tf.ensure_shape(tf.numpy_function(fail, [], tf.float32), [])


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward fail where more than ROOM examples come at a time."""
    right = ForwardBackward._of_part

    def of_part(self: ForwardBackward, trainable: Any, fixed: Any, batch: Any, loss_scale: Any) -> Any:
        if batch.images.shape[0] > ROOM:
            loss_scale += lack_memory()
        return right(self, trainable, fixed, batch, loss_scale)

    monkeypatch.setattr(ForwardBackward, "_of_part", of_part)


def send_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Send this process a signal when the metrics of `step` are logged."""
    right: Callable[[LogMetrics, int], None] = LogMetrics.__call__

    def log(self: LogMetrics, logged: int) -> None:
        right(self, logged)
        if logged == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(LogMetrics, "__call__", log)


def test_a_starved_run_that_three_signals_stop_ends_as_the_undisturbed_one(
    digits: pathlib.Path,
    undisturbed: PlannedRun,
    tmp_path: pathlib.Path,
    little_memory: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned = plan(digits, tmp_path / "run")
    for step, number in ((4, signal.SIGHUP), (8, signal.SIGUSR1), (16, signal.SIGUSR2)):
        with monkeypatch.context() as patch, pytest.raises(StoppedOnRequest, match=f"stopped after step {step}, and"):
            send_at(patch, step, number)
            start_run(planned, no_note)
        said = capsys.readouterr().err
        if number == signal.SIGHUP:
            assert "memory did not suffice for step 1 on this worker with the batch in 1 parts; making it again" in said
            assert json.loads(planned.run.memory_file.read_text())["examples_per_part"] == 26
        else:
            # The number that was found is where it begins.
            assert "making it again" not in said
            assert "each batch is computed in 2 parts: memory did not suffice for fewer" in said
    start_run(planned, no_note)
    np.testing.assert_allclose(losses(planned), losses(undisturbed), rtol=1e-5)
    expected = weights(undisturbed)
    for name, array in weights(planned).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_live_batch_statistics_are_not_changed_by_parts_but_named(
    digits: pathlib.Path, tmp_path: pathlib.Path, little_memory: None
) -> None:
    planned = plan(digits, tmp_path / "run", "model.trainable=all", "model.batch_norm=per_replica")
    with pytest.raises(OutOfMemoryError, match=r"step 1 .* in 1 parts; its batch statistics .* model\.batch_norm=froz"):
        start_run(planned, no_note)
    assert not planned.run.memory_file.exists()


def test_memory_that_ends_in_an_update_asks_for_a_restart_in_more_parts(
    digits: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some variables have the new values then, and some the old ones: that state is never used."""
    planned = plan(digits, tmp_path / "run")
    right = StateUpdate._assign_all

    def assign_all(self: StateUpdate, variables: Any, *values: Any) -> Any:
        with tf.control_dependencies([right(self, variables, *values)]):
            return variables.scalars[0].assign_add(lack_memory())

    monkeypatch.setattr(StateUpdate, "_assign_all", assign_all)
    with pytest.raises(OutOfMemoryRestart, match="an update was under way; the same command goes on") as error:
        start_run(planned, no_note)
    assert error.value.exit_status == 76
    assert json.loads(planned.run.memory_file.read_text())["examples_per_part"] == 26


@pytest.mark.parametrize(
    ("more", "is_host_memory", "is_restarted"),
    [
        ((), True, True),
        ((), False, True),
        (("train.accumulate_steps=2",), False, False),
        (("model.trainable=all", "model.batch_norm=per_replica"), True, False),
    ],
)
def test_the_launcher_starts_workers_that_ended_for_lack_of_memory_again_in_more_parts(
    digits: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    is_host_memory: bool,
    is_restarted: bool,
) -> None:
    planned = plan(digits, tmp_path / "run", "distribute.strategy=multiworker", "distribute.replicas=2", *more)
    starts: list[int] = []
    notes: list[str] = []

    def run_workers(*_: Any, **__: Any) -> None:
        starts.append(1)
        if len(starts) < 3:
            raise OutOfMemoryRestart("worker 1 lacked memory", is_host_memory=is_host_memory)

    monkeypatch.setattr(job, "run_workers", run_workers)
    with RunSession.open(planned, notes.append) as session:
        if not is_restarted:
            with pytest.raises(TrainingError, match="worker 1 lacked memory"):
                train_session(session, ["launch"])
            assert len(starts) == 1
            return
        train_session(session, ["launch"])
    assert len(starts) == 3
    assert "again from the last checkpoint, with each batch in 4 parts" in notes[-1]
    assert json.loads(planned.run.memory_file.read_text())["examples_per_part"] == 8
