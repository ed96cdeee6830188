"""The actions of the loop between steps: write metrics, evaluate, save a checkpoint."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from trainer.console.progress import TrainingProgress
from trainer.errors import NonFiniteGradientError
from trainer.evaluation.evaluator import Evaluator
from trainer.metrics.summary import training_metrics
from trainer.plan.plan import Plan
from trainer.run.metric_writers import MetricsSplit, MetricWriters
from trainer.step.step_results import StepMetrics
from trainer.training.context import RunContext
from trainer.training.early_stopping import has_ended_early
from trainer.training.saved_state import save_checkpoint


class LogMetrics:
    """An action that writes the metrics of the steps since the last line, averaged.

    The values stay on the devices until then, so that no step waits for the host.
    """

    def __init__(self, context: RunContext, writers: MetricWriters, progress: TrainingProgress) -> None:
        self._plan, self._writers, self._progress = context.plan, writers, progress
        self._first_step, self._every_steps = context.step, context.config.log.every_steps
        self._max_skipped_steps = context.config.train.max_skipped_steps
        self._pending: list[StepMetrics] = []
        self._num_skipped_in_a_row = self._last_skipped = 0
        self._started_secs = time.monotonic()

    def collect(self, metrics: StepMetrics) -> None:
        """Keep the metrics of one or more steps for the next line."""
        """Keep the metrics of one or more steps for the next line."""
        self._pending.append(metrics)

    def is_due(self, step: int) -> bool:
        # The first step is traced and compiled: a line after it starts the clock for all the others.
        return step % self._every_steps == 0 or step in (self._first_step + 1, self._plan.schedule.num_train_steps)

    def __call__(self, step: int) -> None:
        """Write the line of `step`; raise NonFiniteGradientError if too many steps in a row were skipped."""
        values = self._columns()
        now = time.monotonic()
        num_images = len(values["loss"]) * self._plan.replicas.global_batch_size
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
        if self._plan.replicas.precision == "mixed_float16":
            averages["loss_scale"] = float(values["loss_scale"][-1])
        self._writers.write(step, "train", averages)
        self._progress.update(step, averages)
        self._check_skipped(step, values["is_skipped"] > 0)

    def exclude_time(self, secs: float) -> None:
        """Exclude `secs` spent on evaluation or saving from images/s."""
        self._started_secs += secs

    def _columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the metrics by name, each [num_steps]."""
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
                first_step=self._last_skipped - self._num_skipped_in_a_row + 1,
            )


class EvaluateAndSave:
    """An action that saves a checkpoint, and evaluates the validation split first at the ends of epochs.

    Every worker takes part in an evaluation; the chief alone saves.

    Args:
        evaluators: by the name of the split in metrics.jsonl; the checkpoint holds the metrics of "validation".
        exclude_time: called with the seconds that the action took.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        evaluators: Mapping[MetricsSplit, Evaluator],
        writers: MetricWriters,
        progress: TrainingProgress,
        exclude_time: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._context, self._plan = context, context.plan
        self._evaluators, self._writers, self._progress = evaluators, writers, progress
        self._exclude_time = exclude_time
        # Set where the run ends before its last step.
        self.is_over = False

    def is_due(self, step: int) -> bool:
        """Return True if a checkpoint of `step` is due."""
        return is_saving_due(self._plan, step)

    def __call__(self, step: int) -> None:
        started_secs = time.monotonic()
        with self._progress.paused():
            validation = {}
            if is_evaluation_due(self._plan, step):
                validation = {name: self._evaluate(name, step) for name in self._evaluators}["validation"]
            save_checkpoint(self._context, step, validation)
            if validation and step < self._plan.schedule.num_train_steps and has_ended_early(self._context, step):
                self.is_over = True
                self._progress.note(f"step {step}: no new best for as long as train.patience says; the run ends here")
        self._exclude_time(time.monotonic() - started_secs)

    def _evaluate(self, name: MetricsSplit, step: int) -> dict[str, float]:
        labels, logits = self._evaluators[name].run()
        metrics = training_metrics(
            labels,
            logits,
            self._plan.data.class_names,
            task=self._plan.model.task,
            split="validation",
            global_step=step,
        )
        self._writers.write(step, name, metrics)
        self._progress.note(
            f"step {step}: {name.replace('_', ' ')} accuracy {metrics['accuracy']:.4f}, loss {metrics['loss']:.4f} "
            f"over {len(labels)} images"
        )
        return metrics


class SaveEverySecs:
    """Saves a checkpoint, without an evaluation, when `checkpoint.every_secs` have passed since the last save.

    The chief alone looks at its clock, and saves alone: the other workers have nothing to do for it. Storage that takes
    longer than that to write a checkpoint does not hold up the training: the next save waits for the one before.
    """

    def __init__(self, context: RunContext) -> None:
        self._context, self._every_secs = context, context.config.checkpoint.every_secs

    def is_due(self, step: int) -> bool:
        saver = self._context.saver
        if saver is None or self._every_secs is None or saver.is_saving:
            return False
        return saver.secs_since_save >= self._every_secs

    def __call__(self, step: int) -> None:
        save_checkpoint(self._context, step)


def is_evaluation_due(plan: Plan, step: int) -> bool:
    """Return True at the ends of epochs and after the last step."""
    return step == plan.schedule.num_train_steps or plan.epochs.ends_with(step)


def is_saving_due(plan: Plan, step: int) -> bool:
    """Return True where an evaluation is due, and every `checkpoint.every_steps` steps."""
    every_steps = plan.schedule.checkpoint_every_steps
    return is_evaluation_due(plan, step) or (every_steps is not None and step % every_steps == 0)
