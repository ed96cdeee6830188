"""How well the scores of a class rank its examples above the others: ROC, precision-recall, the areas under them."""

import dataclasses

import numpy as np

from trainer.metrics.scores import Bools, Floats, Labels, Logits, Task, log_softmax, membership


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Points (x, y) of a curve, each in [0, 1], and the figure that it comes to: the area, or average precision."""

    x: Floats
    y: Floats
    area: float


def class_scores(logits: Logits, task: Task) -> Floats:
    """Scores [n, num_classes] that rank as the probabilities do, and do not saturate where those round to 0 or 1."""
    wide = logits.astype(np.float64)
    if task == "binary":
        margin = wide[:, 1] - wide[:, 0]
        return np.stack([-margin, margin], axis=1)
    return wide if task == "multi_label" else log_softmax(wide)


def roc_aucs(labels: Labels, logits: Logits, task: Task) -> list[float | None]:
    """The area under the ROC curve of each class against all others; None for one that all or no examples have."""
    from sklearn import metrics

    true, scores = membership(labels, logits.shape[1]), class_scores(logits, task)
    return [
        float(metrics.roc_auc_score(true[:, k], scores[:, k])) if 0 < true[:, k].sum() < len(true) else None
        for k in range(true.shape[1])
    ]


def average_precisions(labels: Labels, logits: Logits, task: Task) -> list[float | None]:
    """The average precision of each class; None for one that no example has.

    The sum over thresholds of precision times the gain in recall, without interpolation (scikit-learn's).
    """
    from sklearn import metrics

    true, scores = membership(labels, logits.shape[1]), class_scores(logits, task)
    return [
        float(metrics.average_precision_score(true[:, k], scores[:, k])) if true[:, k].any() else None
        for k in range(true.shape[1])
    ]


def micro_average_precision(labels: Labels, logits: Logits, task: Task) -> float | None:
    """The average precision of all pairs of example and class in one list; None where no example has any class."""
    from sklearn import metrics

    true = membership(labels, logits.shape[1])
    if not true.any():
        return None
    return float(metrics.average_precision_score(true.ravel(), class_scores(logits, task).ravel()))


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
