"""Random rotation, zoom and shift of an image, composed into one affine matrix.

Drawn on the host; `warp` applies the matrix and fills what lies outside the image.
"""

import math
from typing import Any

import tensorflow as tf

from trainer.data.augmentation.warp import round_matrices

Tensor = Any

NUM_UNIFORMS = 4


def choose(uniforms: Tensor, *, rotation_degrees: float, shift: float, zoom: float, image_size_px: int) -> Tensor:
    """Map random numbers in [0, 1), [n, NUM_UNIFORMS], to matrices [n, 6] for `warp.warp_images`.

    Each image is rotated by up to `rotation_degrees` either way and zoomed by a factor from 1 - `zoom` to 1 + `zoom`
    about its centre, then shifted along each axis by up to `shift` of its side. All are uniform; 0 disables one.
    """
    turn, scale, x, y = tf.unstack(2.0 * uniforms - 1.0, axis=1)
    angle = math.radians(rotation_degrees) * turn
    # Sampling points lie further apart where the image shrinks.
    step = 1.0 + zoom * scale
    cos, sin = step * tf.cos(angle), step * tf.sin(angle)
    reach = shift * image_size_px
    return round_matrices(tf.stack([cos, -sin, reach * x, sin, cos, reach * y], axis=1))
