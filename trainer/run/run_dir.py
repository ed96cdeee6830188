"""The run directory: the names of its files, and how a finished or unfinished run is opened.

RUN/
  config.yaml        every setting of the run, defaults written out          (config)
  config.next.yaml   the same while a run is taken further                   (this module)
  run.json           identity of the run: dataset, classes, resolved model   (this module)
  plan.json          what was resolved before the start                      (plan)
  environment.json   versions, devices, machine                              (environment)
  weights.json       which arrays of a weight file were loaded, if any       (model.match_weights)
  metrics.jsonl      one JSON object a line                                  (metric_writers)
  tensorboard/       event files
  checkpoints/       step-00001200/ and so on                                (checkpoint)
  evaluation/        <split>.json and <split>.npz                            (evaluate)
  bad_batch.npz      the batch at which a run stopped, non-finite gradients  (bad_batch)
  memory.json        how much fits into memory, once it did not suffice      (memory_record)
  rollbacks.json     what train.on_non_finite=rollback left out, if any      (rollback)
  report.html                                                                (report)
"""

import os
import pathlib
from typing import Final, Literal

import pydantic
import yaml

from trainer.config.config import Config, load_config
from trainer.config.training import ModelTask
from trainer.errors import RunError, UsageError
from trainer.system import atomic
from trainer.system.names import ClassNames
from trainer.system.paths import as_path
from trainer.system.safe_read import read_small

SCHEMA_VERSION: Final = 1


class RunInfo(pydantic.BaseModel):
    """The contents of `run.json`: what a reader of the run needs besides its settings."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    identity: str
    dataset_dir: str
    dataset_hash: str
    class_names: ClassNames
    num_train_examples: int
    # As resolved from "auto" or a default:
    image_size_px: int
    weights: str
    precision: str
    batch_norm: Literal["frozen", "frozen_statistics", "per_replica", "synchronized"]
    task: ModelTask = "single_label"
    head: Literal["keep", "replace"] = "replace"
    to_last_layer: bool = False


class RunDir:
    """A run directory, by path; the properties name its files, whether or not they exist."""

    def __init__(self, path: pathlib.Path | str) -> None:
        self.path = as_path(path)

    config_file = property(lambda self: self.path / "config.yaml")
    _next_config_file = property(lambda self: self.path / "config.next.yaml")
    info_file = property(lambda self: self.path / "run.json")
    plan_file = property(lambda self: self.path / "plan.json")
    environment_file = property(lambda self: self.path / "environment.json")
    weights_file = property(lambda self: self.path / "weights.json")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    tensorboard_dir = property(lambda self: self.path / "tensorboard")
    checkpoints_dir = property(lambda self: self.path / "checkpoints")
    evaluation_dir = property(lambda self: self.path / "evaluation")
    bad_batch_file = property(lambda self: self.path / "bad_batch.npz")
    rollbacks_file = property(lambda self: self.path / "rollbacks.json")
    memory_file = property(lambda self: self.path / "memory.json")
    report_file = property(lambda self: self.path / "report.html")

    def exists(self) -> bool:
        return bool(self.info_file.is_file())

    def create(self, config: Config, info: RunInfo) -> None:
        """Write the settings and then `run.json`, which makes the directory a run.

        Where that changes the identity of a run, as with more epochs, both change in one moment, which is when
        `run.json` is replaced: until then, the new settings lie beside the old ones.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        is_other = self.exists() and self.info().identity != info.identity
        atomic.write_text(self._next_config_file if is_other else self.config_file, config.to_yaml())
        atomic.write_text(self.info_file, info.model_dump_json(indent=2) + "\n")
        if is_other:
            os.replace(self._next_config_file, self.config_file)
            atomic.sync_directory(self.path)
        else:
            self._next_config_file.unlink(missing_ok=True)

    def info(self) -> RunInfo:
        """Read `run.json`.

        Raises:
            RunError: `path` is not a run directory.
        """
        try:
            return RunInfo.model_validate_json(read_small(self.info_file))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{self.path} is not a run directory (it holds no {self.info_file.name}); "
                f"make one with: trainer launch --data DATASET --run-dir {self.path}"
            ) from None
        except pydantic.ValidationError as e:
            raise RunError(
                f"{self.info_file} is not of schema version {SCHEMA_VERSION}: {e.errors()[0]['msg']}"
            ) from None

    def identity(self) -> str:
        """Return the identity of the run, computed by the rules of this version so that older runs can resume.

        The recorded identity is returned if the settings cannot be read or were changed since the start.
        """
        info = self.info()
        try:
            config = self.config()
        except UsageError:
            return info.identity
        facts = {"dataset_hash": info.dataset_hash, "precision": info.precision}
        is_as_recorded = info.identity == config.first_identity(**facts)
        if not is_as_recorded:
            return info.identity
        return config.identity(dataset_hash=info.dataset_hash, precision=info.precision)

    def has_changed_settings(self) -> bool:
        """Return True if the settings were changed by hand, so that they are not those of the recorded identity."""
        info, config = self.info(), self.config()
        facts = {"dataset_hash": info.dataset_hash, "precision": info.precision}
        return info.identity not in (config.first_identity(**facts), config.identity(**facts, head=info.head))

    def config(self) -> Config:
        """Read the settings of the run.

        Raises:
            RunError: `path` is not a run directory.
            ConfigError: its settings are invalid.
        """
        info = self.info()
        if self._next_config_file.exists():
            # A kill between the two writes of `create`: `run.json` says which settings are its own.
            config = self._read_config(self._next_config_file)
            facts = {"dataset_hash": info.dataset_hash, "precision": info.precision}
            if info.identity == config.identity(**facts, head=info.head):
                return config
        return self._read_config(self.config_file)

    def _read_config(self, file: pathlib.Path) -> Config:
        """Read settings; refuse YAML aliases, which no run writes and which can make a few lines expand endlessly."""
        if not file.exists():
            return load_config(file)
        text = read_small(file).decode(errors="replace")
        try:
            tokens = list(yaml.scan(text))
        except yaml.YAMLError:
            return load_config(file)  # which reports it
        if any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise RunError(f"{file} uses a YAML alias, which no run writes; write the value out")
        return load_config(file)
