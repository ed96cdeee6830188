"""Exponential moving averages of the weights and of the batch-norm statistics, as pure functions of tensors.

Keras's leave out the statistics, so that averaged weights meet statistics that are not theirs.
"""

from typing import Any

import tensorflow as tf

Tensor = Any


def update_averages(averages: list[Tensor], values: list[Tensor], *, decay: float, num_updates: Tensor) -> list[Tensor]:
    """Return the averages after `values`; `num_updates` counts those before (from 0).

    The decay starts low, at (1 + n) / (10 + n), so that the random start is soon forgotten; this is what
    tf.train.ExponentialMovingAverage does with `num_updates`.
    """
    n = tf.cast(num_updates, tf.float32)
    rate = tf.minimum(decay, (1.0 + n) / (10.0 + n))
    return [average + (1.0 - rate) * (value - average) for average, value in zip(averages, values, strict=True)]
