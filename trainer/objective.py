"""What training minimises, and what counts as right, for each kind of task."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from trainer.config import Config
from trainer.data.manifest import Manifest, Task
from trainer.errors import ConfigError
from trainer.settings.training import ModelTask
from trainer.system.names import normalize_class_name

Tensor = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of an example.

    Attributes:
        num_classes: number of logits; a binary model has two, of which the first is 0 (see `model.head`).
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
        """[b, num_classes] float32 of 0 and 1, from the labels of a `Batch`."""
        return tf.one_hot(labels, self.num_classes) if labels.shape.rank == 1 else tf.cast(labels, tf.float32)

    def losses(self, targets: Tensor, logits: Tensor) -> Tensor:
        """Loss [b] of targets and logits, both [b, num_classes], in float32."""
        logits = tf.cast(logits, tf.float32)
        if self.task == "multi_label":
            return sigmoid_losses(targets, logits, self.label_smoothing, self.focal_gamma, self.class_weights)
        return softmax_losses(targets, logits, self.label_smoothing, self.focal_gamma, self.class_weights)

    def rightness(self, targets: Tensor, logits: Tensor) -> Tensor:
        """[b] float32: 1 where the first class is right; of several labels, the share of classes that are."""
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
    """Of classes that exclude each other; targets add up to 1.

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
    """Of classes side by side, each there or not; the mean over the classes."""
    smoothed = targets * (1.0 - label_smoothing) + label_smoothing / 2.0
    losses = tf.nn.sigmoid_cross_entropy_with_logits(smoothed, logits)
    if focal_gamma:
        p = tf.sigmoid(logits)
        losses *= tf.abs(targets - p) ** focal_gamma
    if class_weights is not None:
        # What has the class counts as often as its weight says.
        losses *= 1.0 + targets * (tf.constant(class_weights, tf.float32) - 1.0)
    return tf.reduce_mean(losses, axis=-1)


def resolve_task(asked: str, manifest: Manifest) -> ModelTask:
    """Raises ConfigError where the labels of the dataset do not allow the task."""
    of_dataset: Task = manifest.task
    if asked == "auto":
        return of_dataset
    if of_dataset == "multi_label" and asked != "multi_label":
        raise ConfigError(
            f"train.task is {asked}, and images of the dataset {manifest.name} have several labels; use --set "
            "train.task=multi_label, or prepare it with one label for every image"
        )
    if asked == "multi_label" and of_dataset == "single_label":
        raise ConfigError(
            f"train.task is multi_label, and every image of the dataset {manifest.name} has one label; prepare it from "
            "a JSONL or CSV file with several, or use --set train.task=single_label"
        )
    if asked == "binary" and manifest.num_classes != 2:
        raise ConfigError(
            f"train.task is binary, and the dataset {manifest.name} has {manifest.num_classes} classes, not two; use "
            "--set train.task=single_label"
        )
    return asked  # type: ignore[return-value]


def resolve_class_weights(config: Config, task: ModelTask, manifest: Manifest) -> list[float] | None:
    """The weights of the classes in their order; None for none.

    Raises:
        ConfigError: a class is unknown, or has no training images to be balanced by.
    """
    asked, names = config.train.class_weights, manifest.class_names
    if asked == "none":
        return None
    if isinstance(asked, dict):
        asked = {normalize_class_name(name): weight for name, weight in asked.items()}
        if unknown := sorted(set(asked) - set(names)):
            raise ConfigError(
                f"train.class_weights names the class {unknown[0]!r}, which the dataset does not have; its classes are "
                f"{', '.join(names[:10])}{' ...' if len(names) > 10 else ''}"
            )
        return [asked.get(name, 1.0) for name in names]
    split = manifest.splits["train"]
    if missing := [name for name, count in zip(names, split.class_counts, strict=True) if count == 0]:
        raise ConfigError(
            f"train.class_weights is balanced, and the class {missing[0]!r} has no training images; leave it out with "
            "trainer prepare --exclude, or give the weights by name"
        )
    if task == "multi_label":
        return [(split.num_examples - count) / count or 1.0 for count in split.class_counts]
    return [split.num_examples / (len(names) * count) for count in split.class_counts]
