"""`train.on_non_finite=rollback`: a run goes on after weights that overflow, and does so again after a kill."""

import json
import pathlib
import shutil
from typing import Any

import pytest
import tensorflow as tf
from launching import final_weights_hash, metrics

from tests import small_backbone
from tests.event_files import scalars
from trainer.config.config import load_config
from trainer.errors import ConfigError, NonFiniteGradientError
from trainer.launch.plan_run import plan_run
from trainer.launch.start_run import start_run
from trainer.step.schedule import Schedule

pytestmark = pytest.mark.slow

SETTINGS = (
    "distribute.device=cpu",
    *small_backbone.SETTINGS,
    "model.image_size_px=32",
    "model.trainable=head",
    "train.on_non_finite=rollback",
    "train.max_skipped_steps=3",
    "checkpoint.every_steps=5",
    "checkpoint.keep=20",
    "log.every_steps=1",
    "optimizer.learning_rate=0.01",
)


@pytest.fixture
def bad_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps (from 1) whose learning rate gives weights that all later ones overflow with."""
    steps, rate_at = [], Schedule.at

    def at(self: Schedule, step: Any) -> Any:
        is_bad = tf.reduce_any([tf.equal(tf.cast(step, tf.int32) + 1, bad) for bad in steps])
        return tf.where(is_bad, 1e38, rate_at(self, step))

    monkeypatch.setattr(Schedule, "at", at)
    return steps


def train(digits: pathlib.Path, run_dir: pathlib.Path, *more: str) -> list[str]:
    told: list[str] = []
    config = load_config(overrides=[*SETTINGS, f"data.path={digits}", *more])
    start_run(plan_run(config, run_dir=run_dir, resume=True, note=told.append), told.append)
    return told


def rollbacks(run_dir: pathlib.Path) -> list[dict[str, int]]:
    found: list[dict[str, int]] = json.loads((run_dir / "rollbacks.json").read_text())["rollbacks"]
    return found


def checkpoint_of(run_dir: pathlib.Path, step: int) -> pathlib.Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def test_a_run_goes_on_with_earlier_weights_and_so_does_one_that_is_resumed(
    digits: pathlib.Path, tmp_path: pathlib.Path, bad_steps: list[int]
) -> None:
    bad_steps.append(7)
    run = tmp_path / "run"
    train(digits, run, "train.epochs=1")
    assert rollbacks(run) == [{"checkpoint_step": 5, "last_step": 10}]
    model = [(checkpoint_of(run, step) / "model.safetensors").read_bytes() for step in (5, 10, 15)]
    assert model[0] == model[1] != model[2]
    lines = [(m["step"], m["split"]) for m in metrics(run)]
    assert lines == [(step, "train") for step in range(1, 24)] + [(23, "validation")]
    assert scalars(run / "tensorboard" / "train")["loss"] == list(range(1, 24))
    assert metrics(run)[-1]["accuracy"] > 0.5

    for number, kept in enumerate((10, 5)):
        killed = pathlib.Path(shutil.copytree(run, tmp_path / f"killed {number}"))
        for later in (step for step in (10, 15, 20, 23) if step > kept):
            shutil.rmtree(checkpoint_of(killed, later))
        train(digits, killed, "train.epochs=1")
        assert rollbacks(killed) == rollbacks(run)
        assert final_weights_hash(killed) == final_weights_hash(run)


def test_a_run_ends_at_the_limit_and_where_no_checkpoint_is_left(
    digits: pathlib.Path, tmp_path: pathlib.Path, bad_steps: list[int]
) -> None:
    bad_steps += [7, 26]
    run = tmp_path / "run"
    with pytest.raises(NonFiniteGradientError, match=r"up to step 29 .*after train\.max_rollbacks=1 rollbacks"):
        train(digits, run, "train.epochs=2", "train.max_rollbacks=1")
    assert rollbacks(run) == [{"checkpoint_step": 5, "last_step": 10}]
    bad_steps[:] = [2]
    with pytest.raises(NonFiniteGradientError, match=r"up to step 5 .*no checkpoint to go back to"):
        train(digits, tmp_path / "other", "train.epochs=1")


def test_an_elastic_job_has_no_rollback(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"which an elastic job does not have; use --set train\.on_non_finite=stop"):
        train(digits, tmp_path / "run", "distribute.strategy=horovod", "distribute.min_replicas=1")
