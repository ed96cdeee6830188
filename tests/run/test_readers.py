"""Whoever reads a run that is still trained keeps to the checkpoint that it began with, or says that it is gone."""

import pathlib

import numpy as np
import pytest

from trainer.config.config import Config, load_config
from trainer.errors import RunError
from trainer.run.checkpoint import Checkpoint, CheckpointInfo
from trainer.run.checkpoint_store import CheckpointStore, find_checkpoint, load_model_arrays
from trainer.run.run_dir import RunDir, RunInfo


def save(run: RunDir, config: Config, step: int, accuracy: float) -> None:
    info = CheckpointInfo(
        global_step=step,
        identity="0",
        num_replicas=1,
        loss_scale=1.0,
        num_good_steps=step,
        num_skipped_steps=0,
        validation={"accuracy": accuracy, "loss": 1.0},
    )
    arrays = {"weights": np.full([2], step, np.float32)}
    CheckpointStore.of_run(run, config.checkpoint).save(Checkpoint(info, arrays, {}, {}))


def test_a_better_checkpoint_meanwhile_is_not_taken_for_the_one_that_was_found(tmp_path: pathlib.Path) -> None:
    run, config = RunDir(tmp_path / "run"), load_config(overrides=["checkpoint.keep=1"])
    run.create(
        config,
        RunInfo(
            name="run",
            identity="0",
            dataset_dir="/data",
            dataset_hash="0",
            class_names=["cat", "dog"],
            num_train_examples=10,
            image_size_px=32,
            weights="none",
            precision="float32",
            batch_norm="frozen",
        ),
    )
    save(run, config, 1, accuracy=0.5)
    found = find_checkpoint(run)
    save(run, config, 2, accuracy=0.4)
    assert find_checkpoint(run, found) == find_checkpoint(run, "best") == 1 and find_checkpoint(run, "last") == 2
    save(run, config, 3, accuracy=0.9)
    assert load_model_arrays(run)[0] == 3
    with pytest.raises(RunError, match=r"has removed its checkpoint of step 1 since, .*; run the command again"):
        load_model_arrays(run, found)
