"""What the loop does between steps: write metrics, evaluate, save a checkpoint."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from trainer.console.progress import TrainingProgress
from trainer.errors import NonFiniteGradientError
from trainer.evaluation.evaluator import Evaluator
from trainer.metrics.summary import training_metrics
from trainer.model.classifier import named_arrays, saved_variables
from trainer.plan.plan import Plan
from trainer.run.checkpoint import Arrays, Checkpoint, CheckpointInfo, CheckpointStore
from trainer.run.metric_writers import MetricsSplit, MetricWriters
from trainer.step.state import TrainState
from trainer.step.train_step import StepMetrics


class LogMetrics:
    """Averages the metrics of the steps since the last line and writes them.

    The values stay on the devices until then, so that logging does not make every step wait.
    """

    def __init__(
        self,
        writers: MetricWriters,
        progress: TrainingProgress,
        plan: Plan,
        *,
        first_step: int,
        every_steps: int,
        max_skipped_steps: int,
    ) -> None:
        self._writers, self._progress, self._plan = writers, progress, plan
        self._first_step, self._every_steps, self._max_skipped_steps = first_step, every_steps, max_skipped_steps
        self._pending: list[StepMetrics] = []
        self._num_skipped_in_a_row = self._last_skipped = 0
        self._started_secs = time.monotonic()

    def collect(self, metrics: StepMetrics) -> None:
        self._pending.append(metrics)

    def is_due(self, step: int) -> bool:
        # The first step is traced and compiled: a line after it starts the clock for all the others.
        return step % self._every_steps == 0 or step in (self._first_step + 1, self._plan.num_train_steps)

    def __call__(self, step: int) -> None:
        """Raises NonFiniteGradientError where too many steps in a row had a non-finite gradient."""
        values = self._columns()
        now = time.monotonic()
        num_images = len(values["loss"]) * self._plan.global_batch_size
        images_per_sec = num_images / max(now - self._started_secs, 1e-9)
        self._pending, self._started_secs = [], now
        averages = {
            "loss": float(values["loss"].mean()),
            "accuracy": float(values["accuracy"].mean()),
            "learning_rate": float(values["learning_rate"][-1]),
            "gradient_norm": float(values["gradient_norm"][-1]),
            "images_per_sec": images_per_sec,
            "skipped_steps": float(values["is_skipped"].sum()),
        }
        if self._plan.precision == "mixed_float16":
            averages["loss_scale"] = float(values["loss_scale"][-1])
        self._writers.write(step, "train", averages)
        self._progress.update(step, averages)
        self._check_skipped(step, values["is_skipped"] > 0)

    def leave_out(self, secs: float) -> None:
        """Leaves out of images/s time that was no training: evaluation, saving."""
        self._started_secs += secs

    def _columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """The metrics by name, a value for each step."""
        return {
            name: np.concatenate([np.atleast_1d(np.asarray(getattr(m, name), np.float64)) for m in self._pending])
            for name in StepMetrics._fields
        }

    def _check_skipped(self, step: int, is_skipped: npt.NDArray[np.bool_]) -> None:
        for number, skipped in enumerate(is_skipped, start=step - len(is_skipped) + 1):
            self._num_skipped_in_a_row = self._num_skipped_in_a_row + 1 if skipped else 0
            self._last_skipped = number if skipped else self._last_skipped
        if is_skipped.any():
            self._progress.note(f"step {step}: {int(is_skipped.sum())} steps skipped for a non-finite gradient")
        if self._num_skipped_in_a_row >= self._max_skipped_steps:
            raise NonFiniteGradientError(
                f"the last {self._num_skipped_in_a_row} steps up to step {step} were skipped: a gradient was not "
                "finite; lower optimizer.learning_rate, set optimizer.clip_norm, or use --precision float32",
                step=self._last_skipped,
            )


class EvaluateAndSave:
    """Saves a checkpoint, with the metrics of the validation split at the ends of epochs.

    `evaluators` are named by what they write in metrics.jsonl; the checkpoint holds the metrics of "validation".
    `is_enough` is asked after an evaluation whether the run shall end, on all workers at once.
    Every worker takes part in an evaluation; a worker without a `store`, one that is not the chief, saves nothing.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        identity: str,
        state: TrainState,
        store: CheckpointStore | None,
        evaluators: Mapping[MetricsSplit, Evaluator],
        writers: MetricWriters,
        progress: TrainingProgress,
        leave_out: Callable[[float], None],
        is_enough: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._plan, self._identity, self._state, self._store = plan, identity, state, store
        self._evaluators, self._writers, self._progress, self._leave_out = evaluators, writers, progress, leave_out
        self._is_enough = is_enough
        # Whether the run ends here, before its last step.
        self.is_over = False

    def is_due(self, step: int) -> bool:
        every_steps = self._plan.checkpoint_every_steps
        return self._is_evaluated(step) or (every_steps is not None and step % every_steps == 0)

    def __call__(self, step: int) -> None:
        started_secs = time.monotonic()
        with self._progress.paused():
            validation = {}
            if self._is_evaluated(step):
                validation = {name: self._evaluate(name, step) for name in self._evaluators}["validation"]
            self.save(step, validation)
            if validation and step < self._plan.num_train_steps and self._is_enough(step):
                self.is_over = True
                self._progress.note(f"step {step}: no new best for as long as train.patience says; the run ends here")
        self._leave_out(time.monotonic() - started_secs)

    def save(self, step: int, validation: dict[str, float] | None = None) -> None:
        """Writes the checkpoint of `step`; one that stands already, with its validation metrics, is left alone."""
        if self._store is None or step in self._store.steps():
            return
        state = self._state
        info = CheckpointInfo(
            global_step=step,
            identity=self._identity,
            num_replicas=self._plan.num_replicas,
            loss_scale=float(state.loss_scale.scale.numpy()),
            num_good_steps=int(state.loss_scale.num_good_steps.numpy()),
            num_skipped_steps=int(state.num_skipped_steps.numpy()),
            validation=validation or {},
        )
        model = named_arrays(saved_variables(state.model))
        self._store.save(Checkpoint(info, model, slot_arrays(state), average_arrays(state, model)))

    def _is_evaluated(self, step: int) -> bool:
        return step == self._plan.num_train_steps or self._plan.epochs.ends_with(step)

    def _evaluate(self, name: MetricsSplit, step: int) -> dict[str, float]:
        labels, logits = self._evaluators[name].run()
        metrics = training_metrics(
            labels, logits, self._plan.class_names, task=self._plan.task, split="validation", global_step=step
        )
        self._writers.write(step, name, metrics)
        self._progress.note(
            f"step {step}: {name.replace('_', ' ')} accuracy {metrics['accuracy']:.4f}, loss {metrics['loss']:.4f} "
            f"over {len(labels)} images"
        )
        return metrics


def slot_arrays(state: TrainState) -> Arrays:
    """The optimizer's slots by name: position of the parameter, slot, path."""
    return {
        f"{i:05d}.{j}:{variable.path}": slot.numpy()
        for i, (variable, slots) in enumerate(zip(state.learnt, state.slots, strict=True))
        for j, slot in enumerate(slots)
    }


def average_arrays(state: TrainState, model: Arrays) -> Arrays:
    """`model`, the arrays of the model's variables, with the averages in the place of those that have one."""
    if not state.averages:
        return {}
    averaged = state.averaged_values()
    return {
        name: averaged[id(variable)].numpy() if id(variable) in averaged else model[name]
        for name, variable in zip(model, saved_variables(state.model), strict=True)
    }


def assign_averages(state: TrainState, arrays: Arrays) -> None:
    """Sets the averages from what `average_arrays` returned for the same model."""
    averaged = state.averaged_values()
    for name, variable in zip(sorted(arrays), saved_variables(state.model), strict=True):
        if id(variable) in averaged:
            averaged[id(variable)].assign(arrays[name])


def assign_slots(state: TrainState, arrays: Arrays) -> None:
    """Sets the slots from what `slot_arrays` returned for the same model."""
    by_position = {name.partition(":")[0]: array for name, array in arrays.items()}
    for i, slots in enumerate(state.slots):
        for j, slot in enumerate(slots):
            slot.assign(by_position[f"{i:05d}.{j}"])
