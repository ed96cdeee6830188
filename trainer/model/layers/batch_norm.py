"""Batch normalisation with the statistics of the whole global batch, on every engine, or with those of the weights.

Keras's `synchronized=True` needs a tf.distribute strategy and no function around the replica's step; with Horovod it
would stay local without a word. Here the training step says how to add up over replicas:

    with statistics_over(engine.all_reduce_sum, batch.weights):
        model.stateless_call(...)
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from trainer.model.layers.replace_layers import replace_layers
from trainer.system.private_api.keras_graph import BatchNormalizationWithMoments, all_layers

Tensor = Any


class _Reduction(NamedTuple):
    all_reduce_sum: Callable[[list[Tensor]], list[Tensor]]
    weights: Tensor  # [b] float32


# For the call that is being traced.
_REDUCTION: contextvars.ContextVar[_Reduction | None] = contextvars.ContextVar("statistics_over", default=None)


@contextlib.contextmanager
def statistics_over(all_reduce_sum: Callable[[list[Tensor]], list[Tensor]], weights: Tensor) -> Iterator[None]:
    """Let `SynchronizedBatchNormalization` take its statistics over all replicas within the block.

    Args:
        all_reduce_sum: adds up tensors over the replicas, and can be differentiated.
        weights: [b] float32; examples of weight 0, which only fill up a slice, do not count, all others count once.
    """
    token = _REDUCTION.set(_Reduction(all_reduce_sum, weights))
    try:
        yield
    finally:
        _REDUCTION.reset(token)


@keras.saving.register_keras_serializable("trainer")
class SynchronizedBatchNormalization(BatchNormalizationWithMoments):
    """A batch normalisation over the global batch; in inference the same as `keras.layers.BatchNormalization`."""

    def moments(self, inputs: Tensor, mask: Tensor | None, axes: list[int]) -> tuple[Tensor, Tensor]:
        """Return mean and variance [channels] over all replicas, from one reduction of their sums.

        Raises RuntimeError for training outside of `statistics_over`, and with a mask.
        """
        reduction = _REDUCTION.get()
        if reduction is None or mask is not None:
            raise RuntimeError("SynchronizedBatchNormalization trains within statistics_over, and without masks")
        num_positions = math.prod(inputs.shape[axis] for axis in axes if axis > 0)
        is_counted = tf.cast(reduction.weights > 0, inputs.dtype)
        weights = tf.reshape(is_counted, [-1] + [1] * (len(inputs.shape) - 1))
        # Sums of squares lose their last digits where the mean is large; the moving mean, which is the same on every
        # replica, takes most of it away.
        shift = tf.convert_to_tensor(self.moving_mean)
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        centred = (inputs - tf.reshape(shift, shape)) * weights
        sums = tf.reduce_sum(centred, axes)
        squares = tf.reduce_sum(tf.square(centred), axes)
        count = tf.reduce_sum(is_counted)[tf.newaxis] * float(num_positions)
        (total,) = reduction.all_reduce_sum([tf.concat([sums, squares, count], axis=0)])
        num_channels = inputs.shape[self.axis]
        mean = total[:num_channels] / total[-1]
        variance = total[num_channels:-1] / total[-1] - tf.square(mean)
        return mean + shift, tf.maximum(variance, 0.0)


@keras.saving.register_keras_serializable("trainer")
class FrozenStatisticsBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """A batch normalisation in inference mode at all times; training changes its scale and offset alone."""

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        return super().call(inputs, training=False, mask=mask)


def with_synchronized_statistics(model: Any) -> Any:
    """Copy a functional `model` with new weights and with each of its batch normalisations synchronised."""
    return _with_batch_norm(model, SynchronizedBatchNormalization)


def with_frozen_statistics(model: Any) -> Any:
    """Copy a functional `model` with new weights and with batch statistics that stay those of the weights."""
    return _with_batch_norm(model, FrozenStatisticsBatchNormalization)


def _with_batch_norm(model: Any, kind: Any) -> Any:
    def replacement(layer: Any) -> Any | None:
        if type(layer) is not keras.layers.BatchNormalization:
            return None
        return kind.from_config(layer.get_config())

    return replace_layers(model, replacement)


def momenta_of_statistics(model: Any) -> dict[int, float]:
    """Return the momentum of each of `changing_statistics`, by the id of the variable."""
    momenta = {
        id(variable): float(layer.momentum)
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    return {id(variable): momenta[id(variable)] for variable in changing_statistics(model)}


def debias_moving_average(old: Tensor, new: Tensor, *, momentum: float, num_parts: int, num_updates: Tensor) -> Tensor:
    """Let a moving average forget faster at first what it started from, mean 0 and variance 1.

    With a momentum of 0.999, as in MobileNet, a fiftieth of the 1 is left after 4,000 steps: ten times the variance of
    some channels, and the network classifies at random in inference while its training accuracy is good. The momentum
    starts low, at (1 + n) / (10 + n), like that of `averages.update_averages`.

    Args:
        old: the average before the step.
        new: what the layer made of it, with `momentum`, in `num_parts` batches.
        momentum: of the layer.
        num_parts: batches of the step.
        num_updates: scalar integer, how many steps there were before (from 0).
    """
    n = tf.cast(num_updates, tf.float32)
    kept = momentum**num_parts
    return old + (1.0 - tf.minimum(kept, (1.0 + n) / (10.0 + n))) / (1.0 - kept) * (new - old)


def changing_statistics(model: Any) -> list[Any]:
    """Return the moving means and variances of `model` that training changes: those that are not frozen."""
    return [
        variable
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and not isinstance(layer, FrozenStatisticsBatchNormalization)
        and layer.trainable
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
