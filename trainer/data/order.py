"""Which example comes next: `global index -> example` by arithmetic. This module alone knows.

Training reads one endless stream: position p belongs to epoch p // n and is the (p mod n)-th example of that epoch's
permutation of the n examples. Batch b is positions [b * B, (b + 1) * B). The permutation is stateless, keyed by
(seed, epoch), so that any position is known at once: workers agree without talking, and a resumed run needs no state.
"""

import dataclasses
import enum
from typing import Any, NamedTuple

import tensorflow as tf

Tensor = Any

# Four rounds, the default, mix badly: on class-sorted data whole batches come out of one class.
_NUM_ROUNDS = 8


class Purpose(enum.IntEnum):
    """What randomness is for; different purposes never share a key."""

    ORDER = 0
    AUGMENTATION = 1
    DROPOUT = 2
    SAMPLING = 3
    DEVICE_AUGMENTATION = 4
    MIXING = 5


class Draws(NamedTuple):
    """What stands at some positions of the stream."""

    # [k] int64, each in [0, num_examples).
    examples: Tensor
    # [k] int64: how often the example was drawn before; random changes are keyed by (seed, visit, example), so that no
    # two draws of one image look the same. For uniform sampling it is the epoch.
    visits: Tensor


@dataclasses.dataclass(frozen=True)
class ExampleOrder:
    """The order of `num_examples` examples under `seed`."""

    num_examples: int
    seed: int

    def epoch_of(self, positions: Tensor) -> Tensor:
        """Epochs, from 0, of int64 stream positions."""
        return positions // self.num_examples

    def draw(self, positions: Tensor) -> Draws:
        """What stands at the stream positions [k] int64. Runs on the host: XLA has no kernel for it."""
        positions = tf.convert_to_tensor(positions, tf.int64)
        return Draws(self.examples_at(positions), self.epoch_of(positions))

    def examples_at(self, positions: Tensor) -> Tensor:
        """The examples [k] int64, each in [0, num_examples), at the stream positions [k] int64.

        Runs on the host: XLA has no kernel for it.
        """
        positions = tf.convert_to_tensor(positions, tf.int64)
        epochs = self.epoch_of(positions)
        keys = tf.stack([tf.fill(tf.shape(positions), tf.constant(v, tf.int64)) for v in (self.seed, Purpose.ORDER)])
        seeds = tf.cast(tf.stack([keys[0], epochs, keys[1]], axis=1) % 2**32, tf.uint32)
        last = tf.fill(tf.shape(positions), tf.constant(self.num_examples - 1, tf.int64))
        return tf.raw_ops.RandomIndexShuffle(
            index=positions % self.num_examples, seed=seeds, max_index=last, rounds=_NUM_ROUNDS
        )


def stateless_seed(seed: int, epoch: Tensor, example: Tensor, purpose: Purpose) -> Tensor:
    """A seed [2] int64 for TensorFlow's stateless random operations, keyed by (seed, epoch, example, purpose)."""
    return tf.stack([seed + epoch * 2**32, example + purpose.value * 2**56])
