"""What travels from the input pipeline to the training step."""

from typing import Any, NamedTuple

Tensor = Any


class Batch(NamedTuple):
    """One replica's part of a global batch; b is the per-replica batch size."""

    images: Tensor  # [b, size, size, 3] uint8
    labels: Tensor  # [b] int64; for several labels an example [b, num_classes] float32 of 0 and 1
    weights: Tensor  # [b] float32; 0 for what only fills up the slice
    positions: Tensor  # [b] int64; in training, those in the stream of examples (see data.order)
    # [b, k] float32, what the random changes on the device are made of, drawn on the host by example (see
    # data.augmentation.changes); k is 0 where nothing is changed there.
    randomness: Tensor
