"""`RUN/checkpoints/`: everything that a run needs to resume exactly. This module owns the format.

    step-00001200/checkpoint.json        step, identity of the run, loss scale, validation metrics, hashes
                  model.safetensors      every variable of the model, batch-norm statistics included
                  optimizer.safetensors  every slot of the optimizer
                  averages.safetensors   the model with the moving averages of its weights, if the run keeps them

A checkpoint appears whole or not at all (see `atomic`). Safetensors files hold only arrays, so opening a checkpoint
from elsewhere runs no code. The order of examples is arithmetic on the step, so there is no iterator state to save.
"""

import hashlib
import pathlib
import re
import shutil
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from trainer.config.saving import CheckpointConfig
from trainer.errors import RunError
from trainer.run.run_dir import RunDir
from trainer.system import atomic
from trainer.system.safe_read import check_regular, read_small

SCHEMA_VERSION: Final = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGES_FILE = "averages.safetensors"
_INFO_FILE = "checkpoint.json"
_DIRECTORY = re.compile(r"step-(\d{8})")

Arrays = dict[str, np.ndarray[Any, Any]]
Which = Literal["best", "last"]
# Metrics where lower is better.
LOWER_IS_BETTER = ("loss",)
# auto: the averages, if the run has them.
Weights = Literal["auto", "raw", "averages"]


class CheckpointInfo(pydantic.BaseModel):
    """The contents of `checkpoint.json`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    global_step: int
    identity: str
    num_replicas: int
    loss_scale: float
    num_good_steps: int
    num_skipped_steps: int
    # Metrics of the whole validation split at this step; empty if it was not evaluated.
    validation: dict[str, float] = {}
    sha256: dict[str, str] = {}


class Checkpoint(NamedTuple):
    """A checkpoint in memory. Arrays are named by `classifier.named_arrays` and in `saved_state`."""

    info: CheckpointInfo
    model: Arrays
    optimizer: Arrays
    # The model's arrays with averaged weights; empty without train.ema_decay.
    averages: Arrays


class CheckpointStore:
    """The checkpoints of one run directory. Only the chief writes them."""

    def __init__(self, directory: pathlib.Path, *, keep: int, best_metric: str) -> None:
        self._directory = directory
        self._keep = keep
        self._best_metric = best_metric

    @classmethod
    def of_run(cls, run: RunDir, config: CheckpointConfig) -> "CheckpointStore":
        return cls(run.checkpoints_dir, keep=config.keep, best_metric=config.best_metric)

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, ascending."""
        if not self._directory.is_dir():
            return []
        matches = (_DIRECTORY.fullmatch(entry.name) for entry in self._directory.iterdir())
        return sorted(int(m[1]) for m in matches if m)

    def path(self, step: int) -> pathlib.Path:
        return self._directory / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove all but the newest `keep` and the best."""
        self._directory.mkdir(parents=True, exist_ok=True)
        files = {MODEL_FILE: checkpoint.model, OPTIMIZER_FILE: checkpoint.optimizer}
        if checkpoint.averages:
            files[AVERAGES_FILE] = checkpoint.averages
        with atomic.new_directory(self.path(checkpoint.info.global_step)) as directory:
            hashes = {}
            for file_name, arrays in files.items():
                content = safetensors.numpy.save(arrays)
                (directory / file_name).write_bytes(content)
                hashes[file_name] = hashlib.sha256(content).hexdigest()
            info = checkpoint.info.model_copy(update={"sha256": hashes})
            (directory / _INFO_FILE).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self._remove_old()

    def load(self, step: int) -> Checkpoint:
        """Read the checkpoint of `step`.

        Raises:
            RunError: the checkpoint is damaged; the message names the file and the fix.
        """
        directory = self.path(step)
        info = _read_info(directory)
        return Checkpoint(
            info,
            _read_arrays(directory, MODEL_FILE, info),
            _read_arrays(directory, OPTIMIZER_FILE, info),
            _read_arrays(directory, AVERAGES_FILE, info) if AVERAGES_FILE in info.sha256 else {},
        )

    def best(self) -> int | None:
        """Return the step with the best validation metric (ties: the lower loss), or None if none was validated."""
        validated = [
            (step, info.validation) for step in self.steps() if (info := _read_info(self.path(step))).validation
        ]
        for step, metrics in validated:
            if not {self._best_metric, "loss"} <= metrics.keys():
                raise RunError(f"{self.path(step) / _INFO_FILE} holds no {self._best_metric} of the validation split")
        sign = -1.0 if self._best_metric in LOWER_IS_BETTER else 1.0
        value = {step: (sign * metrics[self._best_metric], -metrics["loss"]) for step, metrics in validated}
        return max(value, key=lambda step: value[step], default=None)

    def clear_temporaries(self) -> None:
        """Remove temporary files of a killed writer. The chief calls it at the start."""
        if self._directory.is_dir():
            atomic.remove_temporaries(self._directory)

    def clear_after(self, step: int) -> None:
        """Remove checkpoints later than `step`, for a run that resumes from there."""
        for later in (s for s in self.steps() if s > step):
            shutil.rmtree(self.path(later))

    def _remove_old(self) -> None:
        kept = {*self.steps()[-self._keep :], self.best()}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step))


def find_checkpoint(run: RunDir, which: Which | int = "best") -> int:
    """Return the step of the best checkpoint, or of the last one.

    "best" means the last one if no checkpoint was validated. Both may change while the run trains, so a caller that
    needs the same checkpoint twice passes the step it found first.

    Raises:
        RunError: `run` is not a run directory, or holds no such checkpoint.
    """
    store = CheckpointStore.of_run(run, run.config().checkpoint)
    steps = store.steps()
    if not steps:
        raise RunError(f"{run.path} holds no checkpoint yet; train it first with: trainer launch --run-dir {run.path}")
    if isinstance(which, int):
        if which not in steps:
            raise RunError(
                f"{run.path} has removed its checkpoint of step {which} since, because it is still training; run the "
                "command again, or wait until training has ended"
            )
        return which
    best = _find_best(store) if which == "best" else None
    return max(store.steps()) if best is None else best


def _find_best(store: CheckpointStore) -> int | None:
    while True:
        steps = store.steps()
        try:
            return store.best()
        except RunError:
            if store.steps() == steps:
                raise  # the checkpoints have not changed, so the error is real


def load_model_arrays(run: RunDir, which: Which | int = "best", weights: Weights = "auto") -> tuple[int, Arrays]:
    """Return the step and the model's arrays of a checkpoint of `run`.

    Raises:
        RunError: there is no run or no checkpoint, it is damaged, or it lacks the averages asked for.
    """
    path, step = find_model_file(run, which, weights)
    return step, _read_arrays(path.parent, path.name, _read_info(path.parent))


def find_model_file(run: RunDir, which: Which | int = "best", weights: Weights = "auto") -> tuple[pathlib.Path, int]:
    """Return the file that `load_model_arrays` would read, and its step.

    Raises:
        RunError: as for `load_model_arrays`, except that the file itself is not checked.
    """
    step = find_checkpoint(run, which)
    directory = CheckpointStore.of_run(run, run.config().checkpoint).path(step)
    has_averages = AVERAGES_FILE in _read_info(directory).sha256
    if weights == "averages" and not has_averages:
        raise RunError(
            f"{run.path} keeps no averages of its weights; use --weights raw, or train with --set train.ema_decay=0.999"
        )
    return directory / (AVERAGES_FILE if has_averages and weights != "raw" else MODEL_FILE), step


def _read_info(directory: pathlib.Path) -> CheckpointInfo:
    try:
        return CheckpointInfo.model_validate_json(read_small(directory / _INFO_FILE))
    except (FileNotFoundError, pydantic.ValidationError) as e:
        raise RunError(
            f"{directory} is not a complete checkpoint ({type(e).__name__}); remove it to use the others"
        ) from None


def _read_arrays(directory: pathlib.Path, file_name: str, info: CheckpointInfo) -> Arrays:
    path = directory / file_name
    try:
        check_regular(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != info.sha256[file_name]:
            raise RunError(
                f"{path} is damaged (its SHA-256 is not the one in {_INFO_FILE}); "
                f"remove {directory} to go on from the checkpoint before it"
            )
        arrays: Arrays = safetensors.numpy.load_file(path)
    except (FileNotFoundError, KeyError, ValueError, safetensors.SafetensorError) as e:
        raise RunError(
            f"{path} is not a weight file of this checkpoint ({' '.join(str(e).split())[:200]}); remove {directory}"
        ) from None
    return arrays
