"""Forward and backward of one replica: a pure function of tensors, without collectives, that XLA can compile.

The one exception are synchronised batch statistics, which are added up over the replicas in the middle of it.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.config.config import Config
from trainer.data.augmentation.on_device import augment_batch
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.input.batch import Batch
from trainer.distribute.topology import part_size
from trainer.errors import ModelError
from trainer.model.layers.batch_norm import statistics_over
from trainer.model.layers.dropout import dropout_keys
from trainer.step.losses import Objective

Tensor = Any
AllReduceSum = Callable[[list[Tensor]], list[Tensor]]


class ReplicaGradients(NamedTuple):
    """The summands of one replica to the sums over all replicas."""

    gradients: list[Tensor]
    statistics: list[Tensor]
    sums: Tensor  # [3]: weighted loss, number right, weight


class ForwardBackward:
    """The forward and backward pass of one replica; the parts of a batch are computed one after the other."""

    def __init__(
        self,
        model: Any,
        config: Config,
        objective: Objective,
        *,
        statistics: list[Any],
        synchronize: AllReduceSum | None,
        num_parts: int = 1,
    ) -> None:
        """Train, as long as this lives, the variables that `model` trains now.

        `statistics` are the variables that its call changes; `synchronize` adds up batch statistics over the replicas,
        and is None where they are frozen or each replica's own. A batch is computed in `num_parts` parts.
        """
        self._num_parts = num_parts
        self._model, self._config, self._objective, self._synchronize = model, config, objective, synchronize
        self._augmentation = resolve_augmentation(config.augment)
        index_of = {id(v): i for i, v in enumerate(model.non_trainable_variables)}
        self._statistics = [index_of[id(v)] for v in statistics]

    def __call__(
        self, trainable: list[Tensor], fixed: list[Tensor], batch: Batch, loss_scale: Tensor
    ) -> ReplicaGradients:
        """Return gradients of the scaled loss over the global batch, new statistics and sums.

        Args:
            trainable: values of the model's trainable variables.
            fixed: values of the others.
            batch: of this replica.
            loss_scale: scalar float32 that the loss is multiplied with, for float16.
        """
        num_parts = self._num_parts
        if num_parts == 1:
            return self._of_part(trainable, fixed, batch, loss_scale)
        parts = split_batch(batch, num_parts)

        def add_part(i: Tensor, gradients: list[Tensor], statistics: list[Tensor], sums: Tensor) -> Any:
            current = list(fixed)
            for index, value in zip(self._statistics, statistics, strict=True):
                current[index] = value
            local = self._of_part(trainable, current, Batch(*(tensor[i] for tensor in parts)), loss_scale)
            added = [total + gradient for total, gradient in zip(gradients, local.gradients, strict=True)]
            return i + 1, added, local.statistics, sums + local.sums

        start = (
            tf.constant(0),
            [tf.zeros_like(value) for value in trainable],
            [fixed[index] for index in self._statistics],
            tf.zeros([3]),
        )
        _, *local = tf.while_loop(
            lambda i, *_: i < num_parts, add_part, start, parallel_iterations=1, maximum_iterations=num_parts
        )
        return ReplicaGradients(*local)

    def _of_part(
        self, trainable: list[Tensor], fixed: list[Tensor], batch: Batch, loss_scale: Tensor
    ) -> ReplicaGradients:
        train = self._config.train
        images, targets = augment_batch(
            self._augmentation,
            batch.images,
            self._objective.targets(batch.labels),
            batch.randomness,
            batch.positions,
        )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trainable)
            logits, new_fixed = self._call_model(trainable, fixed, images, batch)
            losses = self._objective.losses(targets, logits)
            # A static divisor keeps the scaled loss of float16 in the same range for every batch size; the exact
            # number of examples, known after the reduction, corrects it in `apply`.
            loss = tf.reduce_sum(batch.weights * losses) / train.global_batch_size
            scaled_loss = loss * loss_scale
        gradients = tape.gradient(scaled_loss, trainable, unconnected_gradients="zero")
        sums = [
            tf.reduce_sum(batch.weights * losses),
            tf.reduce_sum(batch.weights * self._objective.correct(targets, logits)),
            tf.reduce_sum(batch.weights),
        ]
        return ReplicaGradients(gradients, [new_fixed[i] for i in self._statistics], tf.stack(sums))

    def _call_model(
        self, trainable: list[Tensor], fixed: list[Tensor], images: Tensor, batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        synchronized = (
            statistics_over(self._synchronize, batch.weights) if self._synchronize else contextlib.nullcontext()
        )
        with synchronized, dropout_keys(self._config.train.seed, batch.positions):
            logits, new_fixed = self._model.stateless_call(trainable, fixed, images, training=True)
        for i, (new, old, variable) in enumerate(
            zip(new_fixed, fixed, self._model.non_trainable_variables, strict=True)
        ):
            if new is not old and i not in self._statistics:
                raise ModelError(
                    f"the model changes {variable.path} as it trains, which is no moving average of a batch "
                    "normalisation; such a layer cannot be trained on several replicas"
                )
        return logits, new_fixed


def split_batch(batch: Batch, num_parts: int) -> Batch:
    """Split the tensors [b, ...] of `batch` into [num_parts, size, ...].

    The last parts are filled up with copies of the last example, of weight zero.
    """
    num_examples = batch.images.shape[0]
    size = part_size(num_examples, num_parts)
    rows = tf.range(num_parts * size)
    filled = Batch(*(tf.gather(tensor, tf.minimum(rows, num_examples - 1)) for tensor in batch))
    filled = filled._replace(weights=tf.where(rows < num_examples, filled.weights, 0.0))
    return Batch(*(tf.reshape(tensor, [num_parts, size, *tensor.shape[1:]]) for tensor in filled))
