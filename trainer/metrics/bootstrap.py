"""95% intervals of any metric by resampling the examples, and of the difference of two models on the same examples.

Percentile bootstrap (Efron, Annals of Statistics 7 (1979), 1-26). A resample is how often each example is drawn, and a
metric is computed from these counts for many resamples at once.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from trainer.metrics.predictions import is_correct, predicted_classes
from trainer.metrics.ranking import class_scores
from trainer.metrics.scores import Bools, Floats, Labels, Logits, Task, membership

NUM_RESAMPLES = 1000
SEED = 0
# Of counts at a time, in float64: 1 MB, which stays in the cache of a core.
_BLOCK_VALUES = 2**17
# Examples times classes: above it, resampling the areas under curves would take minutes.
MAX_RANKED = 300_000

# From how often each example is drawn, [resamples, n], to the metric, [resamples]; NaN where it is undefined.
Statistic = Callable[[Floats], Floats]


def make_statistics(
    labels: Labels, logits: Logits, task: Task, thresholds: Floats | None = None
) -> Mapping[str, Statistic]:
    """The metrics that can be resampled: accuracy, macro_f1 and, unless too large, average_precision and roc_auc."""
    true = membership(labels, logits.shape[1])
    predicted = predicted_classes(logits, task, thresholds)
    statistics: dict[str, Statistic] = {
        "accuracy": functools.partial(_mean, is_correct(labels, predicted).astype(np.float64)),
        "macro_f1": functools.partial(_macro_f1, true, predicted),
    }
    if true.size <= MAX_RANKED:
        scores = class_scores(logits, task)
        # The classes of a binary task mirror each other: the positive one is what the areas are about.
        columns = [1] if task == "binary" else range(true.shape[1])
        ranked = [_RankedClass(true[:, k], scores[:, k]) for k in columns]
        statistics["average_precision"] = functools.partial(_mean_over_classes, ranked, _RankedClass.average_precision)
        statistics["roc_auc"] = functools.partial(_mean_over_classes, ranked, _RankedClass.roc_auc)
    return statistics


def draw_resamples(num_examples: int, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> Iterator[Floats]:
    """Blocks of [resamples, num_examples]: how often each example is drawn, num_examples draws with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // num_examples)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.integers(num_examples, size=(size, num_examples)) + num_examples * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_examples)
        yield counts.reshape(size, num_examples).astype(np.float64)


def resample(
    statistics: Mapping[str, Statistic], num_examples: int, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> dict[str, Floats]:
    """Every metric of every resample, [num_resamples]; all metrics see the same resamples."""
    blocks: dict[str, list[Floats]] = {name: [] for name in statistics}
    for counts in draw_resamples(num_examples, num_resamples, seed):
        for name, statistic in statistics.items():
            blocks[name].append(statistic(counts))
    return {name: np.concatenate(values) for name, values in blocks.items()}


def percentile_interval(values: Floats) -> tuple[float, float] | None:
    """The middle 95% of the resamples that define the metric; None where less than half of them do."""
    known = values[~np.isnan(values)]
    if 2 * len(known) < len(values) or len(known) == 0:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


class _RankedClass:
    """The examples in the order of their scores, highest first, in groups of equal ones."""

    def __init__(self, true: Bools, scores: Floats) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._is_positive = true[self._order]
        starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        self._starts = None if len(starts) == len(scores) else starts

    def _group_counts(self, counts: Floats) -> tuple[Floats, Floats]:
        """Positives and negatives of each group, [resamples, groups]."""
        drawn = counts[:, self._order]
        positive, negative = drawn * self._is_positive, drawn * ~self._is_positive
        if self._starts is None:
            return positive, negative
        return np.add.reduceat(positive, self._starts, axis=1), np.add.reduceat(negative, self._starts, axis=1)

    def roc_auc(self, counts: Floats) -> Floats:
        positive, negative = self._group_counts(counts)
        num_pairs = positive.sum(axis=1) * negative.sum(axis=1)
        # A positive wins over the negatives below its group, and halves with those in it.
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


def _macro_f1(true: Bools, predicted: Bools, counts: Floats) -> Floats:
    hits = counts @ (true & predicted).astype(np.float64)
    occurrences = counts @ true.astype(np.float64) + counts @ predicted.astype(np.float64)
    return _mean_of_known(2 * _divide(hits, occurrences))


def _mean_over_classes(
    classes: list[_RankedClass], area: Callable[[_RankedClass, Floats], Floats], counts: Floats
) -> Floats:
    return _mean_of_known(np.stack([area(of_class, counts) for of_class in classes], axis=1))


def _mean_of_known(values: Floats) -> Floats:
    """The mean over the classes that define the metric, [resamples]; NaN where none does."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where the denominator is 0."""
    result: npt.NDArray[np.float64] = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
