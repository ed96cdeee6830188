"""Tune probability thresholds on the validation split."""

import numpy as np

from trainer.metrics.scores import Floats, Labels, Logits, sigmoid


def tune_thresholds(labels: Labels, logits: Logits) -> Floats:
    """Return the threshold with the largest F1 of each class, [num_classes], each in [0, 1].

    A threshold is halfway between two neighbouring probabilities; of equally good ones the nearest to 0.5 is taken. A
    class without positive examples gets 0.5.

    Args:
        labels: [n, num_classes], multi-hot, of the validation split.
        logits: [n, num_classes], of independent classes, so that the probability is the sigmoid.
    """
    return np.array([_best_threshold(labels[:, k] > 0, sigmoid(logits[:, k])) for k in range(labels.shape[1])])


def _best_threshold(is_positive: np.ndarray, probabilities: Floats) -> float:  # type: ignore[type-arg]
    if not is_positive.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], np.cumsum(is_positive[order])
    # Cut after example i; equal probabilities cannot be separated.
    ends = np.flatnonzero(np.append(ranked[:-1] > ranked[1:], True))
    f1 = 2 * hits[ends] / (ends + 1 + is_positive.sum())
    below = np.append(ranked, 0.0)[ends + 1]
    candidates = (ranked[ends] + below) / 2
    # There may be no float between two neighbours; a probability equal to the threshold counts as predicted.
    candidates = np.where(candidates > below, candidates, ranked[ends])
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(candidates[best[np.argmin(np.abs(candidates[best] - 0.5))]])
