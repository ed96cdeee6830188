"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719): each image gets a few of 14 operations, all at one magnitude.

An operation is either an affine warp or a colour operation. The warps of an image are composed into one and applied
before the colour operations: a single interpolation blurs less.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data.augmentation.color_operations import FACTOR_STEP, ColorOperation
from trainer.data.augmentation.warp import Tensor, round_matrices

# At magnitude 10, in the units of the paper's program: a factor of 1 +- 0.9, 30 degrees, a slope of 0.3, and a
# translation by 150 of 331 px.
_MAX_MAGNITUDE = 10.0
_MAX_FACTOR_CHANGE = 0.9
_MAX_DEGREES = 30.0
_MAX_SHEAR = 0.3
_MAX_TRANSLATION = 150 / 331
_MAX_BITS_CUT = 4

_BLENDS = (ColorOperation.BRIGHTNESS, ColorOperation.CONTRAST, ColorOperation.COLOR, ColorOperation.SHARPNESS)
_WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


class RandAugment(NamedTuple):
    """The operations drawn for a batch of images."""

    matrices: Tensor  # [n, 6] float32, see `warp.warp_images`
    operations: Tensor  # [n, num_layers] float32, each a `ColorOperation`
    levels: Tensor  # [n, num_layers] float32


class _Choice(NamedTuple):
    """One operation with its sign, at the magnitude of the run."""

    operation: ColorOperation = ColorOperation.NONE
    level: float = 0.0
    matrix: npt.NDArray[np.float64] = np.eye(3)


def choose(uniforms: Tensor, magnitude: float, image_size_px: int) -> RandAugment:
    """Map random numbers in [0, 1), [n, num_layers], to operations; the first layer is applied first."""
    choices = _list_choices(magnitude, image_size_px)
    index = tf.cast(uniforms * len(choices), tf.int32)
    matrices = tf.unstack(tf.gather(np.array([c.matrix for c in choices], np.float32), index), axis=1)
    composed = matrices[0]
    for matrix in matrices[1:]:
        # The second warp samples the result of the first, so its points are mapped by its matrix first.
        composed = tf.linalg.matmul(composed, matrix)
    return RandAugment(
        round_matrices(tf.reshape(composed[:, :2], [-1, 6])),
        tf.gather(np.array([c.operation for c in choices], np.float32), index),
        tf.gather(np.array([c.level for c in choices], np.float32), index),
    )


def _list_choices(magnitude: float, image_size_px: int) -> list[_Choice]:
    """List the 14 operations twice each, for equal probabilities: once per sign, or the same one twice."""
    share = magnitude / _MAX_MAGNITUDE
    unsigned = [
        _Choice(),
        _Choice(ColorOperation.AUTOCONTRAST),
        _Choice(ColorOperation.EQUALIZE),
        _Choice(ColorOperation.POSTERIZE, 2.0 ** round(_MAX_BITS_CUT * share)),
        _Choice(ColorOperation.SOLARIZE, float(round(256 * (1 - share)))),
    ]
    signed = []
    for sign in (-1, 1):
        factor = round((1 + sign * _MAX_FACTOR_CHANGE * share) / FACTOR_STEP) * FACTOR_STEP
        signed += [_Choice(operation, factor) for operation in _BLENDS]
        signed += [_Choice(matrix=_matrix(name, sign * share, image_size_px)) for name in _WARPS]
    return [*unsigned, *unsigned, *signed]


def _matrix(name: str, share: float, image_size_px: int) -> npt.NDArray[np.float64]:
    """Return the 3x3 matrix of a warp at `share`, from -1 to 1, of its maximum."""
    matrix = np.eye(3)
    if name == "rotate":
        angle = math.radians(_MAX_DEGREES * share)
        matrix[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    elif name == "shear_x":
        matrix[0, 1] = _MAX_SHEAR * share
    elif name == "shear_y":
        matrix[1, 0] = _MAX_SHEAR * share
    else:
        matrix["xy".index(name[-1]), 2] = _MAX_TRANSLATION * share * image_size_px
    return matrix
