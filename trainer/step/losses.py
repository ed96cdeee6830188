"""Compute the loss that training minimises, and the predictions that count as correct, for each kind of task."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from trainer.config.config import Config
from trainer.config.training import ModelTask

Tensor = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss that training minimises.

    Attributes:
        task: what the labels of an image are.
        num_classes: number of logits; a binary model has two, of which the first is 0 (see `model.head`).
        label_smoothing: share of the uniform distribution in the target.
        focal_gamma: 0 for cross-entropy.
        class_weights: [num_classes]; factors of the loss by class.
    """

    task: ModelTask
    num_classes: int
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_weights: Sequence[float] | None = None

    @classmethod
    def of(
        cls, config: Config, *, task: ModelTask, num_classes: int, class_weights: Sequence[float] | None = None
    ) -> "Objective":
        train = config.train
        return cls(
            task=task,
            num_classes=num_classes,
            label_smoothing=train.label_smoothing,
            focal_gamma=train.focal_gamma if train.loss == "focal" else 0.0,
            class_weights=class_weights,
        )

    def targets(self, labels: Tensor) -> Tensor:
        """Return [b, num_classes] float32 of 0 and 1, from the labels of a `Batch`."""
        return tf.one_hot(labels, self.num_classes) if labels.shape.rank == 1 else tf.cast(labels, tf.float32)

    def losses(self, targets: Tensor, logits: Tensor) -> Tensor:
        """Return the loss [b] of targets and logits, both [b, num_classes], in float32."""
        logits = tf.cast(logits, tf.float32)
        if self.task == "multi_label":
            return sigmoid_losses(targets, logits, self.label_smoothing, self.focal_gamma, self.class_weights)
        return softmax_losses(targets, logits, self.label_smoothing, self.focal_gamma, self.class_weights)

    def correct(self, targets: Tensor, logits: Tensor) -> Tensor:
        """Return [b] float32: 1 where the first class is right; of several labels, the share of classes that are."""
        if self.task == "multi_label":
            return tf.reduce_mean(tf.cast(tf.equal(logits > 0, targets >= 0.5), tf.float32), axis=-1)
        # Of a mixed image, the class of its larger part counts.
        return tf.cast(tf.equal(tf.argmax(logits, axis=-1), tf.argmax(targets, axis=-1)), tf.float32)


def softmax_losses(
    targets: Tensor,
    logits: Tensor,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Return the loss [b] for classes that exclude each other; targets add up to 1.

    Smoothing mixes the target with the uniform distribution (Szegedy et al. 2016, arXiv:1512.00567, section 7); gamma
    takes (1 - p)^gamma of each term (Lin et al. 2017, arXiv:1708.02002).
    """
    smoothed = targets * (1.0 - label_smoothing) + label_smoothing / logits.shape[-1]
    if focal_gamma:
        log_p = tf.nn.log_softmax(logits)
        losses = -tf.reduce_sum(smoothed * (1.0 - tf.exp(log_p)) ** focal_gamma * log_p, axis=-1)
    else:
        losses = tf.nn.softmax_cross_entropy_with_logits(smoothed, logits)
    if class_weights is None:
        return losses
    return losses * tf.linalg.matvec(targets, tf.constant(class_weights, tf.float32))


def sigmoid_losses(
    targets: Tensor,
    logits: Tensor,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Return the loss [b] for labels that are each present or not; the mean over the classes."""
    smoothed = targets * (1.0 - label_smoothing) + label_smoothing / 2.0
    losses = tf.nn.sigmoid_cross_entropy_with_logits(smoothed, logits)
    if focal_gamma:
        p = tf.sigmoid(logits)
        losses *= tf.abs(targets - p) ** focal_gamma
    if class_weights is not None:
        # What has the class counts as often as its weight says.
        losses *= 1.0 + targets * (tf.constant(class_weights, tf.float32) - 1.0)
    return tf.reduce_mean(losses, axis=-1)
