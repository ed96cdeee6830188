"""95% bootstrap intervals of any metric, and of the difference between two models on the same examples.

Percentile bootstrap (Efron, Annals of Statistics 7 (1979), 1-26), corrected for the bias of its median. A resample is
a vector of counts, how often each example is drawn, and a metric is computed from the counts of many resamples at once.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.predictions import Predictions, is_correct, predict
from trainer.metrics.ranking import ClassScores, has_class
from trainer.metrics.scores import Bools, Floats, Labels, Logits, Task, row_blocks

NUM_RESAMPLES = 1000
SEED = 0
# Counts computed at a time, in float64: 1 MB, which fits into the cache of a core.
_BLOCK_VALUES = 2**17
# Largest examples times classes for which areas under curves are resampled; more would take minutes.
MAX_RANKED = 300_000

# Maps the counts [resamples, n] to the metric, [resamples]; NaN where it is undefined.
Statistic = Callable[[Floats], Floats]


def make_statistics(
    labels: Labels, logits: Logits, task: Task, thresholds: Floats | None = None
) -> Mapping[str, Statistic]:
    """Return the metrics to resample: accuracy, macro_f1 and, up to `MAX_RANKED`, average_precision and roc_auc."""
    num_classes = logits.shape[1]
    predicted = predict(logits, task, thresholds)
    statistics: dict[str, Statistic] = {
        "accuracy": functools.partial(_mean, is_correct(labels, predicted).astype(np.float64)),
        "macro_f1": (
            functools.partial(_multi_label_macro_f1, labels, predicted)
            if labels.ndim == 2
            else functools.partial(_macro_f1, *_hits_and_occurrences(labels, predicted, num_classes))
        ),
    }
    if logits.size <= MAX_RANKED:
        scores = ClassScores(logits, task)
        # The classes of a binary task mirror each other; the areas are those of the positive one.
        columns = [1] if task == "binary" else range(num_classes)
        ranked = [_RankedClass(has_class(labels, k), scores.of(k)) for k in columns]
        statistics["average_precision"] = functools.partial(_mean_over_classes, ranked, _RankedClass.average_precision)
        statistics["roc_auc"] = functools.partial(_mean_over_classes, ranked, _RankedClass.roc_auc)
    return statistics


def draw_resamples(
    num_examples: int, num_resamples: int = NUM_RESAMPLES, seed: int = SEED, *, num_classes: int = 1
) -> Iterator[Floats]:
    """Yield blocks of counts, [resamples, num_examples]; each resample has num_examples draws with replacement.

    Args:
        num_examples: the size of the split.
        num_resamples: how many resamples to draw in all.
        seed: of the random draws.
        num_classes: of a statistic that computes a value per class; limits the size of a block as well.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // max(num_examples, num_classes))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.integers(num_examples, size=(size, num_examples)) + num_examples * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_examples)
        yield counts.reshape(size, num_examples).astype(np.float64)


def resample(
    statistics: Mapping[str, Statistic],
    num_examples: int,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
    *,
    num_classes: int = 1,
) -> dict[str, Floats]:
    """Return each metric of each resample, [num_resamples]; all metrics use the same resamples."""
    blocks: dict[str, list[Floats]] = {name: [] for name in statistics}
    for counts in draw_resamples(num_examples, num_resamples, seed, num_classes=num_classes):
        for name, statistic in statistics.items():
            blocks[name].append(statistic(counts))
    return {name: np.concatenate(values) for name, values in blocks.items()}


def interval_around(
    estimate: float, values: Floats, bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float] | None:
    """Return the 95% percentile interval, shifted so that the median of the resamples is the estimate.

    The interval is clipped to the bounds of the metric and always contains the estimate. It is None if the estimate or
    more than half of the resamples are undefined.

    A resample repeats some examples and lacks others: means over classes skip the classes that it lacks, and a repeated
    positive raises the precision. Its metric is that of an easier split, and the median of the resamples measures by
    how much. On small splits of a known population, the unshifted interval of mAP covered the true value less often.
    """
    known = values[~np.isnan(values)]
    if math.isnan(estimate) or 2 * len(known) < len(values) or len(known) == 0:
        return None
    low, middle, high = (float(value) for value in np.percentile(known, [2.5, 50.0, 97.5]))
    return max(bounds[0], estimate - (middle - low)), min(bounds[1], estimate + (high - middle))


def estimates(statistics: Mapping[str, Statistic], num_examples: int) -> dict[str, float]:
    """Return each metric on the original examples; NaN where it is undefined."""
    once = np.ones([1, num_examples])
    return {name: float(statistic(once)[0]) for name, statistic in statistics.items()}


class _RankedClass:
    """The examples sorted by score, highest first, in groups of equal scores."""

    def __init__(self, true: Bools, scores: Floats) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._is_positive = true[self._order]
        starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        self._starts = None if len(starts) == len(scores) else starts

    def _group_counts(self, counts: Floats) -> tuple[Floats, Floats]:
        """Return the counts of positives and negatives in each group, [resamples, groups]."""
        drawn = counts[:, self._order]
        positive, negative = drawn * self._is_positive, drawn * ~self._is_positive
        if self._starts is None:
            return positive, negative
        return np.add.reduceat(positive, self._starts, axis=1), np.add.reduceat(negative, self._starts, axis=1)

    def roc_auc(self, counts: Floats) -> Floats:
        positive, negative = self._group_counts(counts)
        num_pairs = positive.sum(axis=1) * negative.sum(axis=1)
        # A positive beats the negatives below its group; those in its group count half.
        below = negative.sum(axis=1, keepdims=True) - np.cumsum(negative, axis=1)
        return _divide((positive * (below + negative / 2)).sum(axis=1), num_pairs)

    def average_precision(self, counts: Floats) -> Floats:
        positive, negative = self._group_counts(counts)
        hits = np.cumsum(positive, axis=1)
        precision = _divide(hits, hits + np.cumsum(negative, axis=1))
        return _divide((np.nan_to_num(precision) * positive).sum(axis=1), hits[:, -1])


def _mean(values: Floats, counts: Floats) -> Floats:
    means: Floats = counts @ values / counts.sum(axis=1)
    return means


def _hits_and_occurrences(labels: Labels, predicted: Predictions, num_classes: int) -> tuple[Any, Any]:
    """Return sparse [n, num_classes] float64: hits, and how often a class is label or prediction (0 to 2)."""
    from scipy import sparse

    def of(classes: Labels | Predictions, ones: Floats) -> Any:
        return sparse.csr_array((ones, (np.arange(len(classes)), classes)), shape=(len(classes), num_classes))

    hits = of(labels, (labels == predicted).astype(np.float64))
    return hits, of(labels, np.ones(len(labels))) + of(predicted, np.ones(len(labels)))


def _macro_f1(hits: Any, occurrences: Any, counts: Floats) -> Floats:
    return _mean_of_known(2 * _divide(counts @ hits, counts @ occurrences))


def _multi_label_macro_f1(labels: Labels, predicted: Predictions, counts: Floats) -> Floats:
    hits, occurrences = np.zeros((2, len(counts), labels.shape[1]))
    for rows in row_blocks(labels.shape):
        true, found = labels[rows] > 0, predicted[rows]
        hits += counts[:, rows] @ (true & found).astype(np.float64)
        occurrences += counts[:, rows] @ (true.astype(np.float64) + found)
    return _mean_of_known(2 * _divide(hits, occurrences))


def _mean_over_classes(
    classes: list[_RankedClass], area: Callable[[_RankedClass, Floats], Floats], counts: Floats
) -> Floats:
    return _mean_of_known(np.stack([area(of_class, counts) for of_class in classes], axis=1))


def _mean_of_known(values: Floats) -> Floats:
    """Return the mean over the classes with a defined metric, [resamples]; NaN where there is none."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is 0."""
    result: npt.NDArray[np.float64] = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
