"""Apply random changes to whole batches on the device: pure functions of the pixels and of the host's draws.

There is no loop over images and no random number, so XLA compiles it into the training step; float32 under every
precision. All arithmetic on pixels is exact (see `warp`, `color_operations`, `mixing`): the result does not depend on
the device, on XLA, or on the other images of the batch.
"""

from typing import Any

import tensorflow as tf

from trainer.data.augmentation.changes import DeviceChanges, unpack
from trainer.data.augmentation.color_operations import change_colors, jitter_colors
from trainer.data.augmentation.mixing import inside_of, mix_pairs
from trainer.data.augmentation.presets import Augmentation
from trainer.data.augmentation.warp import warp_images

Tensor = Any


def augment_batch(
    augmentation: Augmentation, images: Tensor, targets: Tensor, randomness: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the host's draws to one replica's slice of a batch.

    Args:
        augmentation: the one that `randomness` was drawn for.
        images: [b, size, size, 3] uint8; b and size are static.
        targets: [b, num_classes] float32, one-hot or soft.
        randomness: [b, k] float32, from `changes.draw_randomness` for the same augmentation and size.
        positions: [b] int64, in the stream of examples; consecutive ones are mixed.

    Returns:
        Images [b, size, size, 3] float32 from 0 to 255, and targets [b, num_classes] float32.
    """
    if not augmentation.changes_on_device:
        return tf.cast(images, tf.float32), targets
    changes = unpack(augmentation, randomness)
    changed = change_images(images, changes)
    if changes.mixing is None:
        return changed, targets
    return mix_pairs(changed, targets, changes.mixing, positions)


def change_images(images: Tensor, changes: DeviceChanges) -> Tensor:
    """Apply all changes but mixing, [b, size, size, 3] uint8 to float32 from 0 to 255."""
    if changes.flip is not None:
        images = tf.where(changes.flip[:, :, tf.newaxis, tf.newaxis] > 0, tf.reverse(images, [2]), images)
    images = tf.cast(images, tf.float32)
    if changes.warp is not None:
        images = warp_images(images, changes.warp)
    if changes.jitter is not None:
        images = jitter_colors(images, changes.jitter)
    if changes.operations is not None and changes.levels is not None:
        for operations, levels in zip(
            tf.unstack(changes.operations, axis=1), tf.unstack(changes.levels, axis=1), strict=True
        ):
            images = change_colors(images, operations, levels)
    if changes.erasing is not None:
        boxes, colors = changes.erasing[:, :4], changes.erasing[:, tf.newaxis, tf.newaxis, 4:]
        images = tf.where(inside_of(boxes, images.shape[1]), colors, images)
    return images
