"""What a model decides by its probabilities: the best class, or of several labels each one by its threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float32]
# [n] class ids, or for several labels [n, num_classes], whether each is one.
Decisions = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


def decide(probabilities: Probabilities, thresholds: Sequence[float] | None) -> Decisions:
    """The decisions by `probabilities` [n, num_classes]; `thresholds` are null where there is one label an image."""
    if thresholds is None:
        class_ids: npt.NDArray[np.int64] = probabilities.argmax(axis=-1)
        return class_ids
    return np.asarray(probabilities >= np.array(thresholds, np.float32))


def are_same(decisions: Decisions, others: Decisions) -> Bools:
    """[n]: for several labels whether all are the same."""
    same: Bools = np.asarray(decisions == others)
    return np.asarray(same.all(axis=-1)) if same.ndim == 2 else same


def are_clear(
    expected: Probabilities, answers: Probabilities, thresholds: Sequence[float] | None, max_difference: float
) -> Bools:
    """[n]: whether answers within `max_difference` of `expected` could not decide otherwise than `expected` does.

    For several labels this is asked of those that `answers` decides otherwise.
    """
    if thresholds is None:
        best_two = np.sort(expected, axis=-1)[:, -2:]
        clear: Bools = best_two[:, 1] - best_two[:, 0] > 2 * max_difference
        return clear
    differs = decide(answers, thresholds) != decide(expected, thresholds)
    is_far = np.abs(expected - np.array(thresholds, np.float32)) > max_difference
    return np.asarray((differs & is_far).any(axis=-1))
