"""The run directory: the names of its files, and how a finished or unfinished run is opened.

RUN/
  config.yaml        every setting of the run, defaults written out          (config)
  run.json           identity of the run: dataset, classes, resolved model   (this module)
  plan.json          what was resolved before the start                      (plan)
  environment.json   versions, devices, machine                              (environment)
  weights.json       which arrays of a weight file were loaded, if any       (model.match_weights)
  metrics.jsonl      one JSON object a line                                  (metric_writers)
  tensorboard/       event files
  checkpoints/       step-00001200/ and so on                                (checkpoint)
  evaluation/        <split>.json and <split>.npz                            (evaluate)
  bad_batch.npz      the batch at which a run stopped, non-finite gradients  (bad_batch)
  report.html                                                                (report)
"""

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
    info_file = property(lambda self: self.path / "run.json")
    plan_file = property(lambda self: self.path / "plan.json")
    environment_file = property(lambda self: self.path / "environment.json")
    weights_file = property(lambda self: self.path / "weights.json")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    tensorboard_dir = property(lambda self: self.path / "tensorboard")
    checkpoints_dir = property(lambda self: self.path / "checkpoints")
    evaluation_dir = property(lambda self: self.path / "evaluation")
    bad_batch_file = property(lambda self: self.path / "bad_batch.npz")
    report_file = property(lambda self: self.path / "report.html")

    def exists(self) -> bool:
        return bool(self.info_file.is_file())

    def create(self, config: Config, info: RunInfo) -> None:
        """Write the settings and then `run.json`, which makes the directory a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.config_file, config.to_yaml())
        atomic.write_text(self.info_file, info.model_dump_json(indent=2) + "\n")

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

    def config(self) -> Config:
        """Read the settings of the run.

        Raises:
            RunError: `path` is not a run directory.
            ConfigError: its settings are invalid.
        """
        self.info()
        if self.config_file.exists():
            self._check_config_file()
        return load_config(self.config_file)

    def _check_config_file(self) -> None:
        """Refuse YAML aliases, which no run writes and which can make a few lines expand without bound."""
        text = read_small(self.config_file).decode(errors="replace")
        try:
            tokens = list(yaml.scan(text))
        except yaml.YAMLError:
            return  # `load_config` reports it
        if any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise RunError(f"{self.config_file} uses a YAML alias, which no run writes; write the value out")
