"""How well the scores of a class rank its examples above the others: ROC, precision-recall, the areas under them."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from trainer.metrics.scores import Bools, Floats, Labels, Logits, Task, membership, row_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Points (x, y) of a curve, each in [0, 1], and the figure that it comes to: the area, or average precision."""

    x: Floats
    y: Floats
    area: float


class ClassScores:
    """Scores that rank as the probabilities do, and do not saturate where those round to 0 or 1; a class at a time."""

    def __init__(self, logits: Logits, task: Task) -> None:
        self._logits, self._task = logits, task
        if task == "single_label":
            self._largest, self._log_sum = np.empty(len(logits)), np.empty(len(logits))
            for rows in row_blocks(logits.shape):
                block = logits[rows].astype(np.float64)
                self._largest[rows] = block.max(axis=1)
                self._log_sum[rows] = np.log(np.exp(block - self._largest[rows, None]).sum(axis=1))

    def of(self, class_id: int) -> Floats:
        """The scores of one class, [n]."""
        if self._task == "binary":
            margin = self._logits[:, 1].astype(np.float64) - self._logits[:, 0]
            return margin if class_id == 1 else -margin
        column: Floats = self._logits[:, class_id].astype(np.float64)
        return column if self._task == "multi_label" else column - self._largest - self._log_sum

    def rows(self, rows: slice) -> Floats:
        """The scores of some examples, [b, num_classes]."""
        block = self._logits[rows].astype(np.float64)
        if self._task == "binary":
            margin = block[:, 1] - block[:, 0]
            return np.stack([-margin, margin], axis=1)
        if self._task == "multi_label":
            return block
        return block - self._largest[rows, None] - self._log_sum[rows, None]


def has_class(labels: Labels, class_id: int) -> Bools:
    """Whether each example has the class, [n]."""
    found: Bools = labels[:, class_id] > 0 if labels.ndim == 2 else labels == class_id
    return found


def roc_aucs(labels: Labels, logits: Logits, task: Task) -> list[float | None]:
    """The area under the ROC curve of each class against all others; None for one that all or no examples have."""
    scores = ClassScores(logits, task)
    return [_area(has_class(labels, class_id), scores.of(class_id)) for class_id in range(logits.shape[1])]


def average_precisions(labels: Labels, logits: Logits, task: Task) -> list[float | None]:
    """The average precision of each class; None for one that no example has.

    The sum over thresholds of precision times the gain in recall, without interpolation (as scikit-learn's).
    """
    scores = ClassScores(logits, task)

    def average(class_id: int) -> float | None:
        true, of_class = has_class(labels, class_id), scores.of(class_id)
        return _average_precision(of_class[true], [of_class])

    return [average(class_id) for class_id in range(logits.shape[1])]


def micro_average_precision(labels: Labels, logits: Logits, task: Task) -> float | None:
    """The average precision of all pairs of example and class in one list; None where no example has any class.

    The list is not made: how many pairs score as high as a true one is counted block by block.
    """
    scores, num_classes = ClassScores(logits, task), logits.shape[1]
    of_true = [scores.rows(rows)[membership(labels[rows], num_classes)] for rows in row_blocks(logits.shape)]
    return _average_precision(np.concatenate(of_true), (scores.rows(r).ravel() for r in row_blocks(logits.shape)))


def _area(true: Bools, scores: Floats) -> float | None:
    """The share of pairs of a positive and a negative in which the positive is first; equal ones count half."""
    positive, negative = np.sort(scores[true]), scores[~true]
    if not len(positive) or not len(negative):
        return None
    num_below, num_not_above = (int(np.searchsorted(positive, negative, side).sum()) for side in ("left", "right"))
    num_pairs = len(positive) * len(negative)
    return (2 * num_pairs - num_below - num_not_above) / (2 * num_pairs)


def _average_precision(of_true: Floats, blocks: Iterable[Floats]) -> float | None:
    """From the scores of what is true, and those of everything in blocks; None where nothing is true."""
    thresholds, num_at = np.unique(of_true, return_counts=True)
    if not len(thresholds):
        return None
    num_reached = np.zeros(len(thresholds) + 1, np.int64)
    for block in blocks:
        num_reached += np.bincount(np.searchsorted(thresholds, block, "right"), minlength=len(num_reached))
    # Of those that reach each threshold: all, and the true ones.
    num_above = num_reached[::-1].cumsum()[::-1][1:]
    num_true_above = num_at[::-1].cumsum()[::-1]
    return float((num_true_above / num_above * num_at).sum() / num_at.sum())


def roc_curve(true: Bools, scores: Floats) -> Curve:
    """False positive rate against true positive rate, for true [n] with both kinds in it."""
    from sklearn import metrics

    x, y, _ = metrics.roc_curve(true, scores)
    return Curve(x=x, y=y, area=float(metrics.auc(x, y)))


def precision_recall_curve(true: Bools, scores: Floats) -> Curve:
    """Recall against precision, in rising recall up to the first that is 1, for true [n] with a positive in it."""
    from sklearn import metrics

    precision, recall, _ = metrics.precision_recall_curve(true, scores)
    area = float(metrics.average_precision_score(true, scores))
    first_full = np.flatnonzero(recall == 1)[-1]
    precision, recall = precision[first_full:], recall[first_full:]
    return Curve(x=recall[::-1], y=precision[::-1], area=area)


def mean_of_known(values: list[float | None]) -> float | None:
    """The mean of those that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
