"""The batch that goes from the input pipeline to the training step."""

from typing import Any, NamedTuple

Tensor = Any


class Batch(NamedTuple):
    """One replica's part of a global batch; b is the per-replica batch size."""

    images: Tensor  # [b, size, size, 3] uint8
    labels: Tensor  # [b] int64; for several labels an example [b, num_classes] float32 of 0 and 1
    weights: Tensor  # [b] float32; 0 for examples that fill up the slice
    positions: Tensor  # [b] int64; in training, those in the stream of examples (see data.order)
    # [b, k] float32, the random numbers of the changes on the device, drawn on the host for each example (see
    # data.augmentation.changes); k is 0 if there are no such changes.
    randomness: Tensor
