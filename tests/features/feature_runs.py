"""Short runs through the surface that `trainer launch` itself calls, and what they leave."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from tests import small_backbone
from trainer.config.config import Config, load_config
from trainer.launch.plan_run import plan_run
from trainer.launch.start_run import start_run
from trainer.plan.plan import Plan
from trainer.run.checkpoint_store import load_model_arrays
from trainer.run.run_dir import RunDir

# Dropout in the head, and a last batch that is filled up: both depend on which example stands where.
SETTINGS = (
    "distribute.device=cpu",
    *small_backbone.SETTINGS,
    "model.image_size_px=32",
    "model.trainable=head",
    "model.dropout=0.3",
    "train.epochs=3",
    "train.global_batch_size=24",
    "train.ema_decay=0.9",
    "log.every_steps=1",
    "optimizer.learning_rate=0.01",
)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that has come to its end."""

    path: pathlib.Path
    plan: Plan
    notes: list[str]

    def metrics(self, name: str, split: str = "train") -> np.ndarray[Any, Any]:
        """One value for each step that was logged."""
        lines = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        return np.array([line[name] for line in lines if line["split"] == split])

    def weights(self) -> list[np.ndarray[Any, Any]]:
        """The averages of the last checkpoint, in the order of the model's variables."""
        arrays = load_model_arrays(RunDir(self.path), "last", "averages")[1]
        return [arrays[name] for name in sorted(arrays)]


def make_config(dataset_dir: pathlib.Path, *settings: str) -> Config:
    return load_config(overrides=[*SETTINGS, f"data.path={dataset_dir}", *settings])


def finish_run(dataset_dir: pathlib.Path, run_dir: pathlib.Path, *settings: str) -> FinishedRun:
    notes: list[str] = []
    planned = plan_run(make_config(dataset_dir, *settings), run_dir=run_dir, resume=True, note=notes.append)
    start_run(planned, notes.append)
    return FinishedRun(run_dir, planned.plan, notes)
