"""ROC and precision-recall curves, and the areas under them."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from trainer.metrics.scores import Bools, Floats, Labels, Logits, Task, membership, row_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Points (x, y) of a curve, each in [0, 1]; `area` is the area under it, or the average precision."""

    x: Floats
    y: Floats
    area: float


class ClassScores:
    """Scores that rank like the probabilities but do not saturate at 0 or 1."""

    def __init__(self, logits: Logits, task: Task) -> None:
        self._logits, self._task = logits, task
        if task == "single_label":
            self._largest, self._log_sum = np.empty(len(logits)), np.empty(len(logits))
            for rows in row_blocks(logits.shape):
                block = logits[rows].astype(np.float64)
                self._largest[rows] = block.max(axis=1)
                self._log_sum[rows] = np.log(np.exp(block - self._largest[rows, None]).sum(axis=1))

    def of(self, class_id: int) -> Floats:
        """Return the scores of one class, [n]."""
        if self._task == "binary":
            margin = self._logits[:, 1].astype(np.float64) - self._logits[:, 0]
            return margin if class_id == 1 else -margin
        column: Floats = self._logits[:, class_id].astype(np.float64)
        return column if self._task == "multi_label" else column - self._largest - self._log_sum

    def rows(self, rows: slice) -> Floats:
        """Return the scores of some examples, [b, num_classes]."""
        block = self._logits[rows].astype(np.float64)
        if self._task == "binary":
            margin = block[:, 1] - block[:, 0]
            return np.stack([-margin, margin], axis=1)
        if self._task == "multi_label":
            return block
        return block - self._largest[rows, None] - self._log_sum[rows, None]


def has_class(labels: Labels, class_id: int) -> Bools:
    """Return whether each example has the class, [n]."""
    found: Bools = labels[:, class_id] > 0 if labels.ndim == 2 else labels == class_id
    return found


def roc_aucs(labels: Labels, logits: Logits, task: Task) -> list[float | None]:
    """Return the area under each class's ROC curve (one vs. rest); None for a class of all or no examples."""
    scores = ClassScores(logits, task)
    return [_area(has_class(labels, class_id), scores.of(class_id)) for class_id in range(logits.shape[1])]


def average_precisions(labels: Labels, logits: Logits, task: Task) -> list[float | None]:
    """Return the average precision of each class; None for a class of no examples.

    Without interpolation, as in scikit-learn: the sum over thresholds of precision times the gain in recall.
    """
    scores = ClassScores(logits, task)

    def average(class_id: int) -> float | None:
        true, of_class = has_class(labels, class_id), scores.of(class_id)
        return _average_precision(of_class[true], [of_class])

    return [average(class_id) for class_id in range(logits.shape[1])]


def micro_average_precision(labels: Labels, logits: Logits, task: Task) -> float | None:
    """Return the average precision over all pairs of example and class; None if no example has a class.

    The pairs are never sorted as a whole: those that score as high as each true pair are counted block by block.
    """
    scores, num_classes = ClassScores(logits, task), logits.shape[1]
    true_scores = [scores.rows(rows)[membership(labels[rows], num_classes)] for rows in row_blocks(logits.shape)]
    return _average_precision(np.concatenate(true_scores), (scores.rows(r).ravel() for r in row_blocks(logits.shape)))


def _area(true: Bools, scores: Floats) -> float | None:
    """Return the share of pairs of a positive and a negative in which the positive ranks first; ties count half."""
    positive, negative = np.sort(scores[true]), scores[~true]
    if not len(positive) or not len(negative):
        return None
    num_below, num_not_above = (int(np.searchsorted(positive, negative, side).sum()) for side in ("left", "right"))
    num_pairs = len(positive) * len(negative)
    return (2 * num_pairs - num_below - num_not_above) / (2 * num_pairs)


def _average_precision(true_scores: Floats, blocks: Iterable[Floats]) -> float | None:
    """Return the average precision, given the positives' scores and all scores in blocks; None without positives."""
    thresholds, num_at = np.unique(true_scores, return_counts=True)
    if not len(thresholds):
        return None
    num_reached = np.zeros(len(thresholds) + 1, np.int64)
    for block in blocks:
        num_reached += np.bincount(np.searchsorted(thresholds, block, "right"), minlength=len(num_reached))
    # How many reach each threshold, and how many of these are positives.
    num_above = num_reached[::-1].cumsum()[::-1][1:]
    num_true_above = num_at[::-1].cumsum()[::-1]
    return float((num_true_above / num_above * num_at).sum() / num_at.sum())


def roc_curve(true: Bools, scores: Floats) -> Curve:
    """Return true positive rate over false positive rate; `true` [n] must have both values."""
    from sklearn import metrics

    x, y, _ = metrics.roc_curve(true, scores)
    return Curve(x=x, y=y, area=float(metrics.auc(x, y)))


def precision_recall_curve(true: Bools, scores: Floats) -> Curve:
    """Return precision over rising recall, up to the first recall of 1; `true` [n] must have a positive."""
    from sklearn import metrics

    precision, recall, _ = metrics.precision_recall_curve(true, scores)
    area = float(metrics.average_precision_score(true, scores))
    first_full = np.flatnonzero(recall == 1)[-1]
    precision, recall = precision[first_full:], recall[first_full:]
    return Curve(x=recall[::-1], y=precision[::-1], area=area)


def mean_of_known(values: list[float | None]) -> float | None:
    """Return the mean of the values that are not None, or None if all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
