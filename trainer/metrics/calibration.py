"""Whether probabilities are as often right as they say: Guo et al., On Calibration of Modern Neural Networks, 2017."""

import math

import numpy as np
import numpy.typing as npt
import pydantic

from trainer.metrics.scores import Bools, Floats, Labels, Logits, Task, mean_loss, probabilities_of

NUM_BINS = 15
# Logits of a network that is always right want a temperature of 0, and of one that knows nothing an infinite one.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


class ReliabilityBin(pydantic.BaseModel):
    """The answers with a confidence in (low, high]; `confidence` and `accuracy` are their means, 0 where none is."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def answers(labels: Labels, logits: npt.NDArray[np.floating], task: Task) -> tuple[Floats, Bools]:
    """Confidences and whether each was right.

    One for each example, the probability of the predicted class; for multi_label one for each example and class, the
    probability that the example has it and whether it does.
    """
    probabilities = probabilities_of(logits, task)
    if task == "multi_label":
        return probabilities.ravel(), labels.ravel() > 0
    return probabilities.max(axis=1), np.argmax(logits, axis=1) == labels


def reliability(confidences: Floats, correct: Bools, num_bins: int = NUM_BINS) -> list[ReliabilityBin]:
    """The answers in `num_bins` bins of equal width."""
    # Sorted, so that the sums are the same to the last bit in any order of the examples.
    order = np.argsort(confidences, kind="stable")
    confidences, correct = confidences[order], correct[order]
    edges = np.arange(num_bins + 1) / num_bins
    # (low, high]: an answer on an edge belongs below it, and 0 to the first bin.
    index = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(index, minlength=num_bins)
    divisor = np.maximum(counts, 1)
    confidence = np.bincount(index, confidences, num_bins) / divisor
    accuracy = np.bincount(index, correct, num_bins) / divisor
    return [
        ReliabilityBin(low=low, high=high, count=count, confidence=mean, accuracy=share)
        for low, high, count, mean, share in zip(
            edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), confidence.tolist(), accuracy.tolist(),
            strict=True,
        )
    ]  # fmt: skip


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """The mean distance of accuracy and confidence over the answers, bin by bin."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / total


def fit_temperature(labels: Labels, logits: Logits, task: Task) -> float:
    """The T for which logits / T have the least loss, on a validation split.

    Between `MIN_TEMPERATURE` and `MAX_TEMPERATURE`; it changes how sure the model is, and not which class is first.
    """
    from scipy import optimize

    # The loss is convex in 1 / T, so that it has one minimum in log T too.
    found = optimize.minimize_scalar(
        lambda log_t: mean_loss(labels, logits / np.float64(math.exp(log_t)), task),
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))
