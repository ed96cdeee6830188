"""Which answers say nothing of their image: all zero, constant over the classes or the images, or saturated.

Accuracy does not see them where the model itself is weak, and neither does the difference of a probability where there
are so many classes that all of them are small.
"""

from collections.abc import Sequence

import numpy as np

from export.gate.decisions import Bools, Probabilities

# How far the most probable class must be above chance before a constant answer has lost something.
_ABOVE_CHANCE = 1.1
# Of several labels: the least difference of a probability that is a loss.
_LOSS = 0.02
# Next to 0 or 1, as far as 8 bits can tell.
_QUANTUM = 1 / 256
# From the model's probability to a certain answer: the model had not decided, and the answer has nothing left of that.
_SATURATION = 0.4
# Of the mean probability: what differs by less over all images is one answer to all of them.
_ALIKE = 0.01


def find_uninformative(
    expected: Probabilities, answers: Probabilities, thresholds: Sequence[float] | None = None
) -> Bools:
    """[n]: which of `answers` [n, num_classes] say nothing where `expected`, the model's, say something.

    All of them where every image gets the same answer, though not of the model. Not finite answers are another matter.
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
    """From the least to the largest of all probabilities: what a difference of one of them is to be held against."""
    return float(probabilities.max() - probabilities.min())


def are_alike(answers: Probabilities) -> bool:
    """Whether all images get one answer; of a model, that it has learned nothing."""
    return bool(np.ptp(answers, axis=0).max() <= _ALIKE * answers.mean())
