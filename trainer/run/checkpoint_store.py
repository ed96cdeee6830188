"""The checkpoints of a run: which there are, which is the newest whole one and the best, and which are removed."""

import errno
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Final, Literal

from trainer.config.saving import CheckpointConfig
from trainer.errors import RunError
from trainer.run.checkpoint import (
    AVERAGES_FILE,
    INFO_FILE,
    MODEL_FILE,
    Arrays,
    Checkpoint,
    CheckpointInfo,
    DamagedError,
    read_arrays,
    read_checkpoint,
    read_info,
    write_checkpoint,
)
from trainer.run.run_dir import RunDir
from trainer.system import atomic

_DIRECTORY = re.compile(r"step-(\d{8,})")
# Set aside at a resume, for whoever wants to know what happened to the disk; never read again.
DAMAGED_PREFIX: Final = "damaged-"

Which = Literal["best", "last"]
# Metrics where lower is better.
LOWER_IS_BETTER = ("loss",)
# auto: the averages, if the run has them.
Weights = Literal["auto", "raw", "averages"]


class CheckpointStore:
    """The checkpoints of one run directory. Only the chief writes them."""

    def __init__(self, directory: pathlib.Path, *, keep: int, best_metric: str) -> None:
        """Open a store that keeps the `keep` newest checkpoints and the one with the best validation metric."""
        self.directory = directory
        self._keep = keep
        self._best_metric = best_metric

    @classmethod
    def of_run(cls, run: RunDir, config: CheckpointConfig) -> "CheckpointStore":
        return cls(run.checkpoints_dir, keep=config.keep, best_metric=config.best_metric)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending; whether its bytes are whole is found by reading it."""
        try:
            matches = [_DIRECTORY.fullmatch(entry.name) for entry in self.directory.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(m[1]) for m in matches if m)

    def path(self, step: int) -> pathlib.Path:
        return self.directory / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove those that are neither among the newest `keep` nor the best.

        Raises:
            OSError: the disk is full, the run directory is gone or cannot be written; the checkpoints before stand.
        """
        if not self.directory.parent.is_dir():
            # It is not made anew: checkpoints alone are no run.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.directory.parent))
        write_checkpoint(checkpoint, self.path(checkpoint.info.global_step))
        kept = {*self.steps()[-self._keep :], self.best()}
        for step in self.steps():
            if step not in kept:
                self._remove(step)

    def load(self, step: int) -> Checkpoint:
        """Read the checkpoint of `step`.

        Raises:
            DamagedError: a file is missing, torn or changed.
        """
        return read_checkpoint(self.path(step))

    def load_latest(self, on_damaged: Callable[[str], None]) -> Checkpoint | None:
        """Read the newest whole checkpoint, or return None if the run has none at all; for the chief, at the start.

        A damaged one is set aside under another name and `on_damaged` is told; the one before it is tried next.

        Raises:
            RunError: there are checkpoints, and each of them is damaged.
        """
        self._clear_temporaries()
        found = self.steps()
        for step in reversed(found):
            try:
                return self.load(step)
            except DamagedError as e:
                before = [s for s in found if s < step]
                on_damaged(f"warning: {e}; {f'trying the one of step {before[-1]}' if before else 'none is left'}")
                self._set_aside(step)
        if found:
            raise RunError(
                f"all {len(found)} checkpoints in {self.directory} are damaged (set aside as {DAMAGED_PREFIX}...); "
                "copy the run from a backup, or give --run-dir a new directory to train anew"
            )
        return None

    def best(self) -> int | None:
        """Return the step of the best validation metric (of equal ones, the lower loss), if any was validated.

        A checkpoint whose `checkpoint.json` is damaged takes no part.

        Raises:
            RunError: a checkpoint was validated without the metric.
        """
        values = {step: self._rank(step, info) for step in self.steps() if (info := self._find_validated(step))}
        return max(values, key=lambda step: values[step], default=None)

    def clear_after(self, step: int, *, before: float = math.inf) -> None:
        """Remove the checkpoints after `step` and before the step `before`, for a run that goes on from `step`."""
        for later in (s for s in self.steps() if step < s < before):
            self._remove(later)

    def _find_validated(self, step: int) -> CheckpointInfo | None:
        try:
            info = read_info(self.path(step))
        except DamagedError:
            return None
        return info if info.validation else None

    def _rank(self, step: int, info: CheckpointInfo) -> tuple[float, float]:
        if not {self._best_metric, "loss"} <= info.validation.keys():
            raise RunError(f"{self.path(step) / INFO_FILE} holds no {self._best_metric} of the validation split")
        sign = -1.0 if self._best_metric in LOWER_IS_BETTER else 1.0
        value, loss = sign * info.validation[self._best_metric], -info.validation["loss"]
        # No number is worse than any number.
        return -math.inf if math.isnan(value) else value, -math.inf if math.isnan(loss) else loss

    def _remove(self, step: int) -> None:
        # Renamed first: a reader sees it whole or not at all.
        leaving = atomic.temporary_name(self.path(step))
        self.path(step).rename(leaving)
        shutil.rmtree(leaving, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        path = self.directory / f"{DAMAGED_PREFIX}{self.path(step).name}"
        shutil.rmtree(path, ignore_errors=True)
        self.path(step).rename(path)

    def _clear_temporaries(self) -> None:
        if self.directory.is_dir():
            atomic.remove_temporaries(self.directory)


def find_checkpoint(run: RunDir, which: Which | int = "best") -> int:
    """Return the step of the best checkpoint, or of the last one.

    "best" means the last one if no checkpoint was validated. Both may change while the run trains, so a caller that
    asks twice passes the step that it was given first.

    Raises:
        RunError: `run` is no run directory, or holds no checkpoint.
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
    best = store.best() if which == "best" else None
    return max(store.steps()) if best is None else best


def load_model_arrays(run: RunDir, which: Which | int = "best", weights: Weights = "auto") -> tuple[int, Arrays]:
    """Return the step and the model's arrays of a checkpoint of `run`.

    Raises:
        RunError: no run, no checkpoint, a damaged one, or one without the averages that are asked for.
    """
    path, step = find_model_file(run, which, weights)
    return step, read_arrays(path.parent, path.name, read_info(path.parent))


def find_model_file(run: RunDir, which: Which | int = "best", weights: Weights = "auto") -> tuple[pathlib.Path, int]:
    """Return the file that `load_model_arrays` would read, and its step.

    Raises:
        RunError: as `load_model_arrays`, but for a damaged file.
    """
    step = find_checkpoint(run, which)
    directory = CheckpointStore.of_run(run, run.config().checkpoint).path(step)
    has_averages = AVERAGES_FILE in read_info(directory).sha256
    if weights == "averages" and not has_averages:
        raise RunError(
            f"{run.path} keeps no averages of its weights; use --weights raw, or train with --set train.ema_decay=0.999"
        )
    return directory / (AVERAGES_FILE if has_averages and weights != "raw" else MODEL_FILE), step
