"""Labels and logits of a split: checks before any metric, probabilities, and the loss.

The logits of a split, [n, num_classes], are the largest array, a few GB for 10,000 classes. No metric allocates another
floating-point array of that size; computations on all logits run in blocks.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from trainer.config.training import ModelTask
from trainer.errors import DataError, TrainingError

Task = ModelTask

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Size of a block: 32 MB in float64, whatever the size of the split.
BLOCK_VALUES = 2**22


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Divide the rows of [n, num_columns] into blocks of about `BLOCK_VALUES` values, at least one row each."""
    num_rows, num_columns = shape
    size = max(1, BLOCK_VALUES // max(num_columns, 1))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def needed_bytes(num_examples: int, num_classes: int, *, has_several_labels: bool) -> int:
    """Estimate the memory for measuring a split: logits, block buffers and, for multi_label, labels and predictions."""
    return num_examples * num_classes * (6 if has_several_labels else 4) + 8 * 8 * BLOCK_VALUES


def softmax(logits: npt.NDArray[np.floating]) -> Floats:
    """Return probabilities [n, num_classes] in float64 that sum to 1."""
    probabilities: Floats = np.exp(log_softmax(logits))
    return probabilities


def sigmoid(logits: npt.NDArray[np.floating]) -> Floats:
    """Return the probability of each logit in float64, for any shape."""
    wide = logits.astype(np.float64)
    # The exponent is never positive, so nothing overflows.
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1 / (1 + small), small / (1 + small))


def probabilities_of(logits: npt.NDArray[np.floating], task: Task) -> Floats:
    """Return the model's probabilities, [n, num_classes] float64."""
    return sigmoid(logits) if task == "multi_label" else softmax(logits)


def log_softmax(logits: npt.NDArray[np.floating]) -> Floats:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def membership(labels: Labels, num_classes: int) -> Bools:
    """Convert labels [n] or [n, num_classes] to multi-hot [n, num_classes]."""
    if labels.ndim == 2:
        return labels > 0
    of_one: Bools = labels[:, None] == np.arange(num_classes)[None, :]
    return of_one


def scale_logits(logits: npt.NDArray[np.floating], temperature: float | None) -> npt.NDArray[np.floating]:
    """Divide the logits by `temperature`, in float64; return them unchanged for None."""
    return logits if temperature is None else logits / np.float64(temperature)


def example_losses(
    labels: Labels, logits: npt.NDArray[np.floating], task: Task, temperature: float | None = None
) -> Floats:
    """Return the cross-entropy of each example in nats, [n]; for multi_label the mean binary one over the classes."""
    losses = [
        _block_losses(labels[rows], scale_logits(logits[rows], temperature), task) for rows in row_blocks(logits.shape)
    ]
    return np.concatenate(losses) if losses else np.zeros(0)


def mean_loss(labels: Labels, logits: npt.NDArray[np.floating], task: Task, temperature: float | None = None) -> float:
    """Return the mean of `example_losses`."""
    # An exact sum does not depend on the order of the examples, and so not on the number of replicas.
    return math.fsum(example_losses(labels, logits, task, temperature).tolist()) / len(labels)


def _block_losses(labels: Labels, logits: npt.NDArray[np.floating], task: Task) -> Floats:
    if task == "multi_label":
        wide = logits.astype(np.float64)
        softplus = np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))
        means: Floats = (softplus - wide * labels).mean(axis=1)
        return means
    losses: Floats = -np.take_along_axis(log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return losses


def check(labels: Labels, logits: Logits, class_names: list[str], task: Task, split: str, global_step: int) -> None:
    """Check that labels and logits can be measured.

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
    for rows in row_blocks(logits.shape):
        block = labels[rows]
        outside = np.argwhere((block < 0) | (block > highest))
        if len(outside):
            raise DataError(
                f"example {rows.start + outside[0][0]} of the split {split!r} has label {block[tuple(outside[0])]}, "
                f"expected 0 to {highest} for {len(class_names)} classes; prepare the dataset again"
            )
    is_finite = [np.isfinite(logits[rows]).all(axis=1) for rows in row_blocks(logits.shape)]
    broken = np.flatnonzero(~np.concatenate(is_finite))
    if broken.size:
        raise TrainingError(
            f"{broken.size} of {len(labels)} examples of the split {split!r} got NaN or infinite logits at step "
            f"{global_step} (the first is example {broken[0]}), expected finite ones: the weights have diverged; "
            "evaluate an earlier checkpoint, or train again with a lower optimizer.learning_rate"
        )
