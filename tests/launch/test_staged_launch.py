"""Runs that unfreeze more and more, and runs that end early: through the library surface of `trainer launch`."""

import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from trainer.config.config import load_config
from trainer.launch.plan_run import plan_run
from trainer.launch.start_run import start_run
from trainer.run.metric_writers import read_metrics
from trainer.run.run_dir import RunDir

pytestmark = pytest.mark.slow

STAGED = [
    "distribute.device=cpu",
    "model.image_size_px=32",
    "model.trainable=head",
    "train.epochs=1",
    "train.global_batch_size=128",
    "train.unfreeze=[{epoch: 0.4, trainable: top:1}, {epoch: 0.7, trainable: top:2}]",
    "train.ema_decay=0.5",
    "optimizer.clip_norm=1.0",
    "optimizer.layer_decay=0.5",
    "checkpoint.every_steps=3",
    "checkpoint.keep=10",
]


def train(digits: pathlib.Path, run_dir: pathlib.Path, overrides: list[str]) -> RunDir:
    config = load_config(overrides=[*overrides, f"data.path={digits}"])
    planned = plan_run(config, run_dir=run_dir, resume=True, note=lambda _: None)
    start_run(planned, lambda _: None)
    return planned.run


def arrays(run: RunDir, step: int, name: str = "model") -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run.checkpoints_dir / f"step-{step:08d}" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def staged(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(digits, tmp_path_factory.mktemp("staged") / "run", STAGED)


def test_each_stage_trains_more_and_what_is_frozen_stays_to_the_bit(staged: RunDir) -> None:
    def changed(before: int, after: int) -> set[str]:
        first, second = arrays(staged, before), arrays(staged, after)
        return {name.partition(":")[2] for name in first if not np.array_equal(first[name], second[name])}

    # 12 steps; the second stage begins with step 5 and the third with step 8.
    assert {name.split("/")[0] for name in changed(3, 6)} == {"head", "_conv_head"}
    last = {name.split("/")[0] for name in changed(9, 12)}
    assert last > {"head", "_conv_head"}
    assert {name for name in last - {"head", "_conv_head"} if not name.startswith("_blocks_15")} == set()
    averages = arrays(staged, 12, "averages")
    assert averages.keys() == arrays(staged, 12).keys()


@pytest.mark.parametrize("step", [3, 6])
def test_a_staged_run_that_goes_on_from_any_stage_ends_with_the_same_bits(
    digits: pathlib.Path, staged: RunDir, tmp_path: pathlib.Path, step: int
) -> None:
    shutil.copytree(staged.path, tmp_path / "run")
    for later in (s for s in (3, 6, 9, 12) if s > step):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{later:08d}")
    again = train(digits, tmp_path / "run", STAGED)
    for name in ("model", "optimizer", "averages"):
        expected, found = arrays(staged, 12, name), arrays(again, 12, name)
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[key], found[key]) for key in expected), name


def test_a_run_without_a_new_best_ends_early_and_the_same_command_leaves_it_so(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    settings = [
        *("distribute.device=cpu", "model.image_size_px=32", "model.trainable=head", "train.epochs=30"),
        # So small that nothing gets better.
        *("optimizer.learning_rate=1e-12", "train.global_batch_size=512", "train.patience=2"),
    ]
    run = train(digits, tmp_path / "run", settings)
    lines = [line for line in read_metrics(run.metrics_file) if line["split"] == "validation"]
    assert len(lines) == 3
    log = run.metrics_file.read_bytes()
    train(digits, tmp_path / "run", settings)
    assert run.metrics_file.read_bytes() == log
