"""Early stopping, decided from the log of the run alone, so that a resumed run decides the same."""

import pathlib

from trainer.run.checkpoint import LOWER_IS_BETTER
from trainer.run.metric_writers import read_metrics


def has_lost_patience(metrics_file: pathlib.Path, metric: str, *, patience: int, step: int) -> bool:
    """Whether the last `patience` validations up to `step` are all no better than the best one before them."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    lines = [line for line in read_metrics(metrics_file) if line["split"] == "validation" and line["step"] <= step]
    values = [sign * line[metric] for line in lines]
    return len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
