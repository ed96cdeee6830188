"""What is predicted, and how often it is right."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.scores import Bools, Floats, Labels, Logits, Task, membership, sigmoid

# Two-sided 95% of the standard normal distribution.
_Z_95 = 1.959963984540054


def predicted_classes(logits: Logits, task: Task, thresholds: Floats | None = None) -> Bools:
    """Whether each class is predicted for each example, [n, num_classes].

    The class of the largest logit, the first of equal ones; for multi_label every class whose probability reaches
    its threshold ([num_classes]; None: one half).
    """
    if task == "multi_label":
        return sigmoid(logits) >= (0.5 if thresholds is None else thresholds)
    return membership(np.argmax(logits, axis=1).astype(np.int64), logits.shape[1])


def is_correct(labels: Labels, predicted: Bools) -> Bools:
    """[n]: whether exactly the true classes are predicted."""
    correct: Bools = (membership(labels, predicted.shape[1]) == predicted).all(axis=1)
    return correct


def places(labels: Labels, logits: Logits) -> npt.NDArray[np.int64]:
    """[n]: how many classes come before the true one; equal logits count by index, as argmax does."""
    true_logits = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
    place: npt.NDArray[np.int64] = np.sum((logits > true_logits) | ((logits == true_logits) & earlier), axis=1)
    return place


def top_k_accuracy(labels: Labels, logits: Logits, k: int) -> float:
    """The share of examples whose label is among the k largest logits."""
    return float(np.mean(places(labels, logits) < k))


def precision_recall_f1(true: Bools, predicted: Bools, average: str | None = None) -> tuple[Any, Any, Any, Any]:
    """Precision, recall, F1 and support of true and predicted classes, both [n, num_classes].

    [num_classes] each, or for the average "macro" or "micro" one number each; a quotient that is undefined is 0. The
    macro average is over the classes that occur, as a label or as a prediction.
    """
    from sklearn import metrics

    occurs = true.any(axis=0) | predicted.any(axis=0)
    if average == "macro" and not occurs.any():
        return 0.0, 0.0, 0.0, None
    labels = np.flatnonzero(occurs) if average == "macro" else None
    values: tuple[Any, Any, Any, Any] = metrics.precision_recall_fscore_support(
        true, predicted, labels=labels, average=average, zero_division=0.0
    )
    return values


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """The 95% score interval of a proportion: Wilson, JASA 22 (1927), 209-212.

    Unlike the normal approximation it stays inside [0, 1] and is right for accuracies near 1.
    """
    n, z2 = num_examples, _Z_95**2
    proportion = num_correct / n
    centre = (proportion + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(proportion * (1 - proportion) / n + z2 / (4 * n * n))
    # At 0 and n correct one end is exactly 0 or 1; rounding must not push it out.
    low = 0.0 if num_correct == 0 else centre - half
    high = 1.0 if num_correct == n else centre + half
    return low, high
