"""Dropout whose masks belong to examples, not to batches: the same on any number of replicas, and after a restart.

Keras keys a mask by a counter of its own: every replica then drops the same units, and a resumed run others. Here the
training step gives a key for each example, and a layer makes its mask of nothing else:

    with dropout_keys(seed, batch.positions):
        model.stateless_call(...)
"""

import contextlib
import contextvars
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from trainer.model.layers.replace_layers import replace_layers

Tensor = Any
# uint32 [b], for the call that is being traced.
_KEYS: contextvars.ContextVar[Tensor | None] = contextvars.ContextVar("dropout_keys", default=None)
_GOLDEN_RATIO = 0x9E3779B9


@contextlib.contextmanager
def dropout_keys(seed: int, positions: Tensor) -> Iterator[None]:
    """Let every `ExampleDropout` in the block key its masks by `seed` and the stream positions [b] int64."""
    low = tf.cast(positions % 2**32, tf.uint32)
    high = tf.cast(positions // 2**32, tf.uint32)
    keys = _mix(_mix(_mix(low) ^ high) ^ tf.constant(seed % 2**32, tf.uint32))
    token = _KEYS.set(keys)
    try:
        yield
    finally:
        _KEYS.reset(token)


@keras.saving.register_keras_serializable("trainer")
class ExampleDropout(keras.layers.Layer):  # type: ignore[misc]
    """A dropout whose masks are keyed by example.

    Args:
        rate: the share that is dropped, in [0, 1); the rest is scaled by 1 / (1 - rate).
        noise_shape: as in Keras, with None for the batch; (None, 1, 1, 1) drops whole examples (stochastic depth).
        salt: sets the masks of one layer apart from those of others.
    """

    def __init__(
        self, rate: float, noise_shape: tuple[int | None, ...] | None = None, salt: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.noise_shape, self.salt = rate, noise_shape, salt

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Drop units in training. Raises RuntimeError outside of `dropout_keys`: masks would differ by replica."""
        if not training or self.rate == 0 or not self.trainable:
            return inputs
        keys = _KEYS.get()
        if keys is None:
            raise RuntimeError("ExampleDropout was called for training outside of dropout_keys")
        shape = self._mask_shape(inputs)
        is_kept = _uniform(keys, self.salt, math.prod(shape)) >= self.rate
        mask = tf.reshape(tf.cast(is_kept, inputs.dtype), [-1, *shape])
        return inputs * mask * tf.cast(1 / (1 - self.rate), inputs.dtype)

    def _mask_shape(self, inputs: Tensor) -> list[int]:
        """Return the shape of a mask without the batch."""
        wanted = self.noise_shape or (None,) * len(inputs.shape)
        return [int(size if asked is None else asked) for asked, size in zip(wanted[1:], inputs.shape[1:], strict=True)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "noise_shape": self.noise_shape, "salt": self.salt}


def with_example_dropout(model: Any, first_salt: int = 1) -> Any:
    """Copy a functional `model` with new weights and each Keras Dropout replaced; return one without any as it is."""
    salts = itertools.count(first_salt)

    def replacement(layer: Any) -> Any | None:
        if type(layer) is not keras.layers.Dropout:
            return None
        return ExampleDropout(
            layer.rate, layer.noise_shape, salt=next(salts), name=layer.name, dtype=layer.dtype_policy
        )

    return replace_layers(model, replacement)


def _uniform(keys: Tensor, salt: int, num_values: int) -> Tensor:
    """Draw float32 [b, num_values] in [0, 1) from keys [b] uint32.

    A counter goes through a mixing function, so that XLA compiles it on any device.
    """
    counters = tf.range(num_values, dtype=tf.int64) + 1
    counters = tf.cast(counters * _GOLDEN_RATIO % 2**32, tf.uint32)
    salted = _mix(keys ^ tf.constant(salt * _GOLDEN_RATIO % 2**32, tf.uint32))
    bits = _mix(_mix(salted[:, tf.newaxis] ^ counters[tf.newaxis, :]))
    # 24 bits are what a float32 holds exactly.
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """Map uint32 one to one so that each input bit flips every output bit in about half of the cases.

    The multipliers and shifts are "lowbias32" of C. Wellons, https://nullprogram.com/blog/2018/07/31/ (public domain).
    """
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))) * tf.constant(multiplier, tf.uint32)
    return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))
