"""Calibration of probabilities: Guo et al., On Calibration of Modern Neural Networks, 2017."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pydantic

from trainer.metrics.scores import (
    Bools,
    Floats,
    Labels,
    Logits,
    Task,
    mean_loss,
    probabilities_of,
    row_blocks,
    scale_logits,
)

NUM_BINS = 15
# The best temperature is 0 for a model that is always right, and infinite for one no better than chance.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
# On log(temperature).
_BOUND_TOLERANCE = 1e-3
# Probabilities are summed as integer multiples of 2^-52, in two halves of 26 bits.
_UNIT, _HALF_BITS, _HALF_MASK = 2.0**52, 26, 2**26 - 1


class ReliabilityBin(pydantic.BaseModel):
    """The predictions with a confidence in (low, high]; `confidence` and `accuracy` are means, 0 for an empty bin."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def confidences(
    labels: Labels, logits: npt.NDArray[np.floating], task: Task, temperature: float | None = None
) -> Iterator[tuple[Floats, Bools]]:
    """Yield blocks of (confidences, correct), both 1-D.

    There is one per example, the probability of the predicted class and whether that is the label; for multi_label one
    per example and class, the probability that the example has the class and whether it does.
    """
    for rows in row_blocks(logits.shape):
        block = scale_logits(logits[rows], temperature)
        probabilities = probabilities_of(block, task)
        if task == "multi_label":
            yield probabilities.ravel(), labels[rows].ravel() > 0
        else:
            yield probabilities.max(axis=1), np.argmax(block, axis=1) == labels[rows]


def reliability(blocks: Iterable[tuple[Floats, Bools]], num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """Sort predictions into `num_bins` bins of equal width."""
    edges = np.arange(num_bins + 1) / num_bins
    counts, num_correct = np.zeros(num_bins, np.int64), np.zeros(num_bins, np.int64)
    sums = [0] * num_bins
    for values, correct in blocks:
        # Bins are (low, high]; 0 belongs to the first.
        index = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, num_bins - 1)
        counts += np.bincount(index, minlength=num_bins)
        num_correct += np.bincount(index[correct], minlength=num_bins)
        sums = [total + more for total, more in zip(sums, _exact_sums(values, index, num_bins), strict=True)]
    return [
        ReliabilityBin(
            low=low,
            high=high,
            count=count,
            confidence=total / (max(count, 1) * _UNIT),
            accuracy=right / max(count, 1),
        )
        for low, high, count, total, right in zip(
            edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), sums, num_correct.tolist(), strict=True
        )
    ]


def _exact_sums(values: Floats, index: npt.NDArray[np.int64], num_bins: int) -> list[int]:
    """Return the sum of each bin in units of 1 / `_UNIT`, exact and so independent of order and blocks."""
    whole = (values * _UNIT).astype(np.int64)
    # In two halves, whose floating-point sums are exact for more values than a block has.
    high, low = (np.bincount(index, half, num_bins).tolist() for half in (whole >> _HALF_BITS, whole & _HALF_MASK))
    return [(int(h) << _HALF_BITS) + int(rest) for h, rest in zip(high, low, strict=True)]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """Return the mean of |accuracy - confidence| over the bins, weighted by their counts."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / total


def fit_temperature(labels: Labels, logits: Logits, task: Task) -> float | None:
    """Return the temperature T that minimizes the loss of logits / T on a validation split.

    It changes confidences but not the order of the classes. None if the minimum is at `MIN_TEMPERATURE` or
    `MAX_TEMPERATURE`: the best T is then 0, for a model that is right on every image, or infinite, for one no better
    than chance, and neither calibrates.
    """
    from scipy import optimize

    def loss(log_t: float) -> float:
        return mean_loss(labels, logits, task, temperature=math.exp(log_t))

    # The loss is convex in 1 / T, so it has a single minimum in log T too.
    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    if is_at_bound(math.exp(found.x)) or found.fun >= min(loss(bound) for bound in bounds):
        return None
    return float(math.exp(found.x))


def is_at_bound(temperature: float) -> bool:
    """Return whether a temperature is at a bound of the search, within its tolerance."""
    return any(abs(math.log(temperature / bound)) < _BOUND_TOLERANCE for bound in (MIN_TEMPERATURE, MAX_TEMPERATURE))
