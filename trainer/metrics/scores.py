"""Labels and logits of a split: the checks that come before any metric, probabilities, and the loss."""

import math

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError, TrainingError
from trainer.settings.training import ModelTask

Task = ModelTask

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Rows of float64 softmax at a time: 1,000 classes then take 32 MB whatever the size of the split.
_BLOCK_ROWS = 4096


def softmax(logits: npt.NDArray[np.floating]) -> Floats:
    """Probabilities [n, num_classes] in float64 that add up to 1."""
    probabilities: Floats = np.exp(log_softmax(logits))
    return probabilities


def sigmoid(logits: npt.NDArray[np.floating]) -> Floats:
    """A probability for each logit, float64, of any shape."""
    wide = logits.astype(np.float64)
    # The exponent is never positive, so that nothing overflows.
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1 / (1 + small), small / (1 + small))


def probabilities_of(logits: npt.NDArray[np.floating], task: Task) -> Floats:
    """What the model answers: [n, num_classes], float64."""
    return sigmoid(logits) if task == "multi_label" else softmax(logits)


def log_softmax(logits: npt.NDArray[np.floating]) -> Floats:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def membership(labels: Labels, num_classes: int) -> Bools:
    """Whether each example has each class, [n, num_classes], from labels [n] or [n, num_classes]."""
    if labels.ndim == 2:
        return labels > 0
    of_one: Bools = labels[:, None] == np.arange(num_classes)[None, :]
    return of_one


def example_losses(labels: Labels, logits: npt.NDArray[np.floating], task: Task) -> Floats:
    """Cross-entropy of each example in nats, [n]; for multi_label the mean of the binary ones over the classes."""
    losses = [
        _block_losses(labels[start : start + _BLOCK_ROWS], logits[start : start + _BLOCK_ROWS], task)
        for start in range(0, len(labels), _BLOCK_ROWS)
    ]
    return np.concatenate(losses) if losses else np.zeros(0)


def mean_loss(labels: Labels, logits: npt.NDArray[np.floating], task: Task) -> float:
    """The mean of `example_losses`."""
    # An exact sum is the same in any order of the examples, and so on any number of replicas.
    return math.fsum(example_losses(labels, logits, task).tolist()) / len(labels)


def _block_losses(labels: Labels, logits: npt.NDArray[np.floating], task: Task) -> Floats:
    if task == "multi_label":
        wide = logits.astype(np.float64)
        softplus = np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))
        means: Floats = (softplus - wide * labels).mean(axis=1)
        return means
    losses: Floats = -np.take_along_axis(log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return losses


def check(labels: Labels, logits: Logits, class_names: list[str], task: Task, split: str, global_step: int) -> None:
    """Whether labels and logits are such that they can be measured.

    Raises:
        DataError: the split is empty, or a label is out of range.
        TrainingError: a logit is NaN or infinite.
    """
    label_shape = (len(labels), len(class_names)) if task == "multi_label" else (len(labels),)
    assert labels.shape == label_shape and logits.shape == (len(labels), len(class_names)), (labels.shape, logits.shape)
    assert task != "binary" or len(class_names) == 2, f"binary has two classes, not {len(class_names)}"
    if len(labels) == 0:
        raise DataError(
            f"the split {split!r} holds no examples, so there is nothing to measure; "
            "evaluate another split, or prepare the dataset with a share for this one"
        )
    highest = 1 if task == "multi_label" else len(class_names) - 1
    outside = np.argwhere((labels < 0) | (labels > highest))
    if len(outside):
        raise DataError(
            f"example {outside[0][0]} of the split {split!r} has label {labels[tuple(outside[0])]}, expected 0 to "
            f"{highest} for {len(class_names)} classes; prepare the dataset again"
        )
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        raise TrainingError(
            f"{broken.size} of {len(labels)} examples of the split {split!r} got NaN or infinite logits at step "
            f"{global_step} (the first is example {broken[0]}), expected finite ones: the weights have diverged; "
            "evaluate an earlier checkpoint, or train again with a lower optimizer.learning_rate"
        )
