"""The classic random warps: an image is turned, zoomed and moved, all by one matrix.

Decided on the host; see `warp` for how a matrix is applied, and for what lies outside of the image.
"""

import math
from typing import Any

import tensorflow as tf

from trainer.data.augmentation.warp import round_matrices

Tensor = Any

NUM_UNIFORMS = 4


def choose(uniforms: Tensor, *, rotation_degrees: float, shift: float, zoom: float, image_size_px: int) -> Tensor:
    """Make [n, NUM_UNIFORMS] random numbers from [0, 1) into matrices [n, 6] for `warp.warp_images`.

    Each image is turned by up to `rotation_degrees` either way and zoomed by a factor from 1 - `zoom` to 1 + `zoom`
    about its centre, then moved along each axis by up to `shift` of its side. All are uniform; 0 leaves one out.
    """
    turn, scale, x, y = tf.unstack(2.0 * uniforms - 1.0, axis=1)
    angle = math.radians(rotation_degrees) * turn
    # The points that are sampled lie further apart where the picture becomes smaller.
    step = 1.0 + zoom * scale
    cos, sin = step * tf.cos(angle), step * tf.sin(angle)
    reach = shift * image_size_px
    return round_matrices(tf.stack([cos, -sin, reach * x, sin, cos, reach * y], axis=1))
