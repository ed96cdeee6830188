"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740, 3.2), the same on every replica.

Keras's own decides from replica 0 whether the gradients are finite, and writes another replica's inf into the weights.
Here the decision is made on the reduced gradients, inside the step; this module holds the scale and its next value.
"""

import dataclasses
from typing import Any

import tensorflow as tf

Tensor = Any
_INITIAL_SCALE = 2.0**15
_GROWTH_STEPS = 2000


@dataclasses.dataclass
class LossScale:
    """A loss scale and the number of finite steps in a row; where it is not dynamic, the scale stays 1."""

    is_dynamic: bool
    scale: Any
    num_good_steps: Any

    @classmethod
    def create(cls, *, is_dynamic: bool) -> "LossScale":
        initial = _INITIAL_SCALE if is_dynamic else 1.0
        return cls(
            is_dynamic,
            tf.Variable(initial, dtype=tf.float32, trainable=False),
            tf.Variable(0, dtype=tf.int64, trainable=False),
        )

    @property
    def variables(self) -> list[Any]:
        return [self.scale, self.num_good_steps]

    def next(self, scale: Tensor, num_good_steps: Tensor, is_finite: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and count: halved after a non-finite gradient, doubled after 2,000 finite steps, 1 to 2^24."""
        if not self.is_dynamic:
            return scale, num_good_steps
        num_good_steps = tf.where(is_finite, num_good_steps + 1, 0)
        grows = num_good_steps >= _GROWTH_STEPS
        scale = tf.where(is_finite, tf.where(grows, scale * 2.0, scale), scale / 2.0)
        return tf.clip_by_value(scale, 1.0, 2.0**24), tf.where(grows, tf.zeros_like(num_good_steps), num_good_steps)
