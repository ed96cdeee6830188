"""Predictions from logits; accuracy, precision, recall and F1.

Predictions have the shape of labels: the class of each example, [n] int64, or, for multi_label, whether each class is
predicted, [n, num_classes] bool.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.metrics.scores import Bools, Floats, Labels, Logits, Task, row_blocks, sigmoid

Predictions = npt.NDArray[np.int64] | Bools

# Two-sided 95% of the standard normal distribution.
_Z_95 = 1.959963984540054


def predict(logits: Logits, task: Task, thresholds: Floats | None = None) -> Predictions:
    """Return the class of the largest logit (ties: the first); for multi_label every class that reaches its threshold.

    Args:
        logits: [n, num_classes].
        task: how the logits are read.
        thresholds: [num_classes] probabilities, for multi_label; None means 0.5.
    """
    if task != "multi_label":
        classes: npt.NDArray[np.int64] = np.argmax(logits, axis=1).astype(np.int64)
        return classes
    at_least = 0.5 if thresholds is None else thresholds
    predicted = np.empty(logits.shape, np.bool_)
    for rows in row_blocks(logits.shape):
        predicted[rows] = sigmoid(logits[rows]) >= at_least
    return predicted


def is_correct(labels: Labels, predicted: Predictions) -> Bools:
    """Return whether exactly the true classes are predicted, [n]."""
    if labels.ndim == 1:
        return np.asarray(labels == predicted)
    correct = np.empty(len(labels), np.bool_)
    for rows in row_blocks(labels.shape):
        correct[rows] = ((labels[rows] > 0) == predicted[rows]).all(axis=1)
    return correct


def label_ranks(labels: Labels, logits: Logits) -> npt.NDArray[np.int64]:
    """Return how many classes rank above the label, [n]; ties rank by index, as in argmax."""
    ranks = np.empty(len(labels), np.int64)
    for rows in row_blocks(logits.shape):
        block, of_class = logits[rows], labels[rows, None]
        true_logits = np.take_along_axis(block, of_class, axis=1)
        earlier = np.arange(block.shape[1])[None, :] < of_class
        ranks[rows] = np.sum((block > true_logits) | ((block == true_logits) & earlier), axis=1)
    return ranks


def top_k_accuracy(labels: Labels, logits: Logits, k: int) -> float:
    """Return the share of examples whose label is among the k largest logits."""
    return float(np.mean(label_ranks(labels, logits) < k))


class Averages(NamedTuple):
    """Averages of precision, recall and F1 over classes."""

    precision: float
    recall: float
    f1: float


class ClassCounts(NamedTuple):
    """Counts per class, [num_classes] int64: true positives, predictions, and examples that have the class."""

    hits: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    support: npt.NDArray[np.int64]

    @classmethod
    def of(cls, labels: Labels, predicted: Predictions, num_classes: int) -> "ClassCounts":
        if labels.ndim == 1:
            hits, all_predicted, support = (
                np.bincount(classes, minlength=num_classes)
                for classes in (labels[labels == predicted], predicted, labels)
            )
            return cls(hits, all_predicted, support)
        counts = np.zeros([3, num_classes], np.int64)
        for rows in row_blocks(labels.shape):
            true, found = labels[rows] > 0, predicted[rows]
            counts += np.stack([(true & found).sum(axis=0), found.sum(axis=0), true.sum(axis=0)])
        return cls(*counts)

    @property
    def precision(self) -> Floats:
        """Precision per class; 0 where undefined, like recall and F1."""
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> Floats:
        return _ratio(self.hits, self.support)

    @property
    def f1(self) -> Floats:
        return _ratio(2 * self.hits, self.predicted + self.support)

    def macro(self) -> Averages:
        """Average over the classes that occur as a label or a prediction; 0 if none does."""
        occurs = (self.predicted > 0) | (self.support > 0)
        if not occurs.any():
            return Averages(0.0, 0.0, 0.0)
        return Averages(*(float(values[occurs].mean()) for values in (self.precision, self.recall, self.f1)))

    def micro(self) -> Averages:
        """Compute the metrics from the counts of all classes together."""
        total = ClassCounts(*(counts.sum(keepdims=True) for counts in self))
        return Averages(float(total.precision[0]), float(total.recall[0]), float(total.f1[0]))


def _ratio(numerator: npt.NDArray[np.int64], denominator: npt.NDArray[np.int64]) -> Floats:
    quotients: Floats = numerator / np.maximum(denominator, 1)
    return quotients


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """Return the 95% score interval of a proportion: Wilson, JASA 22 (1927), 209-212.

    Unlike the normal approximation it stays within [0, 1] and is accurate near 1.
    """
    n, z2 = num_examples, _Z_95**2
    proportion = num_correct / n
    centre = (proportion + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(proportion * (1 - proportion) / n + z2 / (4 * n * n))
    # At 0 and n correct one bound is exactly 0 or 1, whatever the rounding.
    low = 0.0 if num_correct == 0 else centre - half
    high = 1.0 if num_correct == n else centre + half
    return low, high
