"""Whether probabilities are as often right as they say: Guo et al., On Calibration of Modern Neural Networks, 2017."""

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
    cooled,
    mean_loss,
    probabilities_of,
    row_blocks,
)

NUM_BINS = 15
# Logits of a network that is always right want a temperature of 0, and of one that knows nothing an infinite one.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
# In the logarithm.
_BOUND_TOLERANCE = 1e-3
# Probabilities are added up as whole numbers of 2^-52, of 26 bits each half.
_UNIT, _HALF_BITS, _HALF_MASK = 2.0**52, 26, 2**26 - 1


class ReliabilityBin(pydantic.BaseModel):
    """The answers with a confidence in (low, high]; `confidence` and `accuracy` are their means, 0 where none is."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def answers(
    labels: Labels, logits: npt.NDArray[np.floating], task: Task, temperature: float | None = None
) -> Iterator[tuple[Floats, Bools]]:
    """Confidences and whether each was right, in blocks.

    One for each example, the probability of the predicted class; for multi_label one for each example and class, the
    probability that the example has it and whether it does.
    """
    for rows in row_blocks(logits.shape):
        block = cooled(logits[rows], temperature)
        probabilities = probabilities_of(block, task)
        if task == "multi_label":
            yield probabilities.ravel(), labels[rows].ravel() > 0
        else:
            yield probabilities.max(axis=1), np.argmax(block, axis=1) == labels[rows]


def reliability(blocks: Iterable[tuple[Floats, Bools]], num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """The answers in `num_bins` bins of equal width."""
    edges = np.arange(num_bins + 1) / num_bins
    counts, num_correct = np.zeros(num_bins, np.int64), np.zeros(num_bins, np.int64)
    sums = [0] * num_bins
    for confidences, correct in blocks:
        # (low, high]: an answer on an edge belongs below it, and 0 to the first bin.
        index = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
        counts += np.bincount(index, minlength=num_bins)
        num_correct += np.bincount(index[correct], minlength=num_bins)
        sums = [total + more for total, more in zip(sums, _exact_sums(confidences, index, num_bins), strict=True)]
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


def _exact_sums(confidences: Floats, index: npt.NDArray[np.int64], num_bins: int) -> list[int]:
    """The sum of each bin in units of 1 / `_UNIT`, the same in any order of the answers and in any blocks."""
    whole = (confidences * _UNIT).astype(np.int64)
    # In two halves, whose sums in floating point are exact for more answers than a block has.
    high, low = (np.bincount(index, half, num_bins).tolist() for half in (whole >> _HALF_BITS, whole & _HALF_MASK))
    return [(int(h) << _HALF_BITS) + int(rest) for h, rest in zip(high, low, strict=True)]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """The mean distance of accuracy and confidence over the answers, bin by bin."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / total


def fit_temperature(labels: Labels, logits: Logits, task: Task) -> float | None:
    """The T for which logits / T have the least loss, on a validation split; it changes how sure the model is, and not
    which class is first.

    None where no T between `MIN_TEMPERATURE` and `MAX_TEMPERATURE` has less loss than both of these: the best one is
    then 0, of a model that is right on every image, or infinite, of one that knows nothing, and neither is a
    calibration.
    """
    from scipy import optimize

    def loss(log_t: float) -> float:
        return mean_loss(labels, logits, task, temperature=math.exp(log_t))

    # The loss is convex in 1 / T, so that it has one minimum in log T too.
    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    if is_at_bound(math.exp(found.x)) or found.fun >= min(loss(bound) for bound in bounds):
        return None
    return float(math.exp(found.x))


def is_at_bound(temperature: float) -> bool:
    """Whether a temperature is where the search for it ends, to the precision of the search."""
    return any(abs(math.log(temperature / bound)) < _BOUND_TOLERANCE for bound in (MIN_TEMPERATURE, MAX_TEMPERATURE))
