"""Affine warps of a batch of images, each by its own matrix.

The arithmetic is exact: matrices are rounded to `MATRIX_STEP` on the host and sampling points to 1/64 of a pixel, so
no product or sum needs more than the 24 bits of a float32. All devices, with or without XLA, give the same pixels.
"""

from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any

# Up to 1,024 px, a coordinate times a matrix entry is exact in float32.
MATRIX_STEP = 2.0**-12
FILL = 128.0
_POINTS_PER_PX = 64.0


def round_matrices(matrices: Tensor) -> Tensor:
    """Round matrices of any shape to values that `warp_images` computes with exactly."""
    return tf.round(matrices / MATRIX_STEP) * MATRIX_STEP


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Compose warps [n, 6]: apply `first`, then `second`."""
    n = tf.shape(first)[0]
    last_row = tf.tile(tf.constant([[[0.0, 0.0, 1.0]]]), [n, 1, 1])
    one, other = (tf.concat([tf.reshape(matrices, [-1, 2, 3]), last_row], axis=1) for matrices in (first, second))
    # The second warp samples the result of the first, so its points are mapped by its matrix first.
    return round_matrices(tf.reshape(tf.linalg.matmul(one, other)[:, :2], [-1, 6]))


def warp_images(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample bilinearly at affinely mapped points, rounded to whole values; points outside become grey.

    Args:
        images: [b, size, size, 3] float32, whole numbers from 0 to 255.
        matrices: [b, 6] float32, rows (a, b, c, d, e, f), from `round_matrices`: the pixel at (x, y) from the centre
            of the result is the one at (a x + b y + c, d x + e y + f) from the centre of the image.

    Returns:
        [b, size, size, 3] float32, whole numbers from 0 to 255.
    """
    size = images.shape[1]
    left, top, is_inside = _sampling_points(matrices, size)
    column, row = tf.floor(left / _POINTS_PER_PX), tf.floor(top / _POINTS_PER_PX)
    right_part, lower_part = left - column * _POINTS_PER_PX, top - row * _POINTS_PER_PX
    packed = _pack(images)
    sums: Tensor = 0.0
    for y, y_weight in ((row, _POINTS_PER_PX - lower_part), (row + 1, lower_part)):
        for x, x_weight in ((column, _POINTS_PER_PX - right_part), (column + 1, right_part)):
            clipped = tf.clip_by_value(y, 0.0, size - 1.0) * size + tf.clip_by_value(x, 0.0, size - 1.0)
            corners = tf.gather(packed, tf.cast(clipped, tf.int32), batch_dims=1)
            sums += _unpack(corners) * (y_weight * x_weight)[..., tf.newaxis]
    pixels = tf.where(is_inside[..., tf.newaxis], tf.round(sums / _POINTS_PER_PX**2), FILL)
    return tf.reshape(pixels, tf.shape(images))


def _sampling_points(matrices: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and y [b, size * size] in 1/64 px from the centre of the first pixel, and which lie on the image."""
    center = (size - 1) / 2
    y, x = (grid.reshape(1, -1) - center for grid in np.mgrid[:size, :size].astype(np.float32))
    a, b, c, d, e, f = (entry[:, tf.newaxis] for entry in tf.unstack(matrices, axis=1))
    points = (a * x + b * y + c + center, d * x + e * y + f + center)
    left, top = (tf.round(p * _POINTS_PER_PX) for p in points)
    half = _POINTS_PER_PX / 2
    end = size * _POINTS_PER_PX - half
    is_inside = (left >= -half) & (left < end) & (top >= -half) & (top < end)
    return left, top, is_inside


def _pack(images: Tensor) -> Tensor:
    """Pack [b, size, size, 3] to [b, size * size], three channels in one float32, to gather a pixel at once."""
    flat = tf.reshape(images, [tf.shape(images)[0], images.shape[1] * images.shape[2], 3])
    return flat[..., 0] + flat[..., 1] * 256.0 + flat[..., 2] * 65536.0


def _unpack(packed: Tensor) -> Tensor:
    upper = tf.floor(packed / 256.0)
    blue = tf.floor(upper / 256.0)
    return tf.stack([packed - upper * 256.0, upper - blue * 256.0, blue], axis=-1)
