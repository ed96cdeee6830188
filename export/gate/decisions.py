"""Turn probabilities into decisions: the most probable class, or for multi-label each class by its threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float32]
# [n] class ids, or for multi-label [n, num_classes] bool.
Decisions = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


def decide(probabilities: Probabilities, thresholds: Sequence[float] | None) -> Decisions:
    """Return the decisions for `probabilities`, [n, num_classes]; `thresholds` are None for a single label."""
    if thresholds is None:
        class_ids: npt.NDArray[np.int64] = probabilities.argmax(axis=-1)
        return class_ids
    return np.asarray(probabilities >= np.array(thresholds, np.float32))


def are_same(decisions: Decisions, others: Decisions) -> Bools:
    """Return which rows are equal, [n]; for multi-label, equal in all classes."""
    same: Bools = np.asarray(decisions == others)
    return np.asarray(same.all(axis=-1)) if same.ndim == 2 else same


def are_clear(
    expected: Probabilities, answers: Probabilities, thresholds: Sequence[float] | None, max_difference: float
) -> Bools:
    """Return which decisions no difference of up to `max_difference` could change, [n].

    For multi-label, only the classes that `answers` decides differently count.
    """
    if thresholds is None:
        best_two = np.sort(expected, axis=-1)[:, -2:]
        clear: Bools = best_two[:, 1] - best_two[:, 0] > 2 * max_difference
        return clear
    differs = decide(answers, thresholds) != decide(expected, thresholds)
    is_far = np.abs(expected - np.array(thresholds, np.float32)) > max_difference
    return np.asarray((differs & is_far).any(axis=-1))
