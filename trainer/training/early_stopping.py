"""Early stopping, decided from the log of the run alone, so that a resumed run decides the same."""

import pathlib

from trainer.errors import StorageError
from trainer.run.checkpoint_saver import CheckpointSaver
from trainer.run.checkpoint_store import LOWER_IS_BETTER
from trainer.run.metric_writers import read_metrics
from trainer.system import storage_errors
from trainer.training.context import RunContext


def has_ended_early(context: RunContext, step: int) -> bool:
    """Return True if the evaluations up to `step` have brought no new best for `train.patience` of them.

    The chief alone reads the log; all workers call this together and get the same answer.
    """
    patience, metric = context.config.train.patience, context.config.checkpoint.best_metric
    if patience is None:
        return False
    if context.saver is not None:
        _check_written(context.saver)
    return context.engine.any(
        context.is_chief and has_lost_patience(context.run.metrics_file, metric, patience=patience, step=step)
    )


def _check_written(saver: CheckpointSaver) -> None:
    """Raise StorageError if the log lacks lines that could not be written."""
    try:
        saver.before_save()
    except OSError as e:
        raise StorageError(
            f"train.patience decides by the log, which could not be written to {storage_errors.describe(e)}; make room "
            "and start the same command again"
        ) from e


def has_lost_patience(metrics_file: pathlib.Path, metric: str, *, patience: int, step: int) -> bool:
    """Return True if the last `patience` validations up to `step` are all no better than the best one before them."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    lines = [line for line in read_metrics(metrics_file) if line["split"] == "validation" and line["step"] <= step]
    values = [sign * line[metric] for line in lines]
    return len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
