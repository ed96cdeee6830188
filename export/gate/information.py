"""Find uninformative answers: all zero, constant over the classes or the images, or saturated.

Accuracy misses them if the model itself is weak, and so does the difference of a probability if there are so many
classes that all probabilities are small.
"""

from collections.abc import Sequence

import numpy as np

from export.gate.decisions import Bools, Probabilities

# Factor above chance of the model's best class from which a constant answer has lost information.
_ABOVE_CHANCE = 1.1
# Multi-label: the least difference of a probability that is a loss.
_LOSS = 0.02
# An 8-bit step: closer to 0 or 1 counts as certain.
_QUANTUM = 1 / 256
# A certain answer this far from the model's probability is saturated: the model had not decided.
_SATURATION = 0.4
# Share of the mean probability: answers that differ by less over all images are the same answer.
_ALIKE = 0.01


def find_uninformative(
    expected: Probabilities, answers: Probabilities, thresholds: Sequence[float] | None = None
) -> Bools:
    """Return which `answers`, [n, num_classes], are uninformative where `expected`, the model's, are not; [n].

    All of them if every image gets the same answer, but not from the model. Non-finite answers are judged elsewhere.
    """
    if are_alike(answers) and not are_alike(expected):
        return np.ones(len(expected), np.bool_)
    difference = np.abs(answers - expected).max(axis=-1)
    if thresholds is None:
        says_something = expected.max(axis=-1) > _ABOVE_CHANCE / expected.shape[-1]
    else:
        says_something = difference > _LOSS
    is_constant = answers.max(axis=-1) == answers.min(axis=-1)
    is_certain = (np.minimum(answers, 1 - answers) <= _QUANTUM).all(axis=-1)
    uninformative: Bools = (is_constant & says_something) | (is_certain & (difference > _SATURATION))
    return uninformative


def spread_of(probabilities: Probabilities) -> float:
    """Return the difference of the largest and the smallest probability, the scale for judging differences."""
    return float(probabilities.max() - probabilities.min())


def are_alike(answers: Probabilities) -> bool:
    """Return whether all images get the same answer; a model that does so has learned nothing."""
    return bool(np.ptp(answers, axis=0).max() <= _ALIKE * answers.mean())
