"""Mixup and CutMix of neighbours: images at rows 2i and 2i + 1 of a replica's slice, and their targets.

    mixup   (Zhang et al. 2018, arXiv:1710.09412): a weighted sum of both images
    CutMix  (Yun et al. 2019, arXiv:1905.04899): a rectangle of one image is pasted into the other

Both images of a pair are mixed with each other by the same numbers, drawn for the first of the two. Two rows are a pair
only if their positions are consecutive: padding of a slice, and the last row of an odd batch, are left unchanged. So an
image's mix is the same on any number of replicas.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Tensor = Any

NUM_UNIFORMS = 4
NUM_COLUMNS = 6
# Fine enough to be invisible, coarse enough for exact products with pixels in float32.
_WEIGHT_STEP = 2.0**-12
_NUM_QUANTILES = 4096


def choose_mixes(uniforms: Tensor, *, mixup_alpha: float, cutmix_alpha: float, image_size_px: int) -> Tensor:
    """Map random numbers in [0, 1), [n, NUM_UNIFORMS], to mixes; if both alphas are above 0, half get each kind.

    Returns:
        [n, NUM_COLUMNS] float32: the weight of the own image outside the rectangle (1 for CutMix); top, left, bottom
        and right of the rectangle in px (empty for mixup); and the own image's share of the target.
    """
    kind, weight, y, x = tf.unstack(uniforms, axis=1)
    is_mixup = kind < (0.5 if mixup_alpha and cutmix_alpha else 1.0 if mixup_alpha else 0.0)
    own_weight = tf.ones_like(weight)
    if mixup_alpha:
        quantile = _beta_quantile(weight, mixup_alpha)
        # Each image of the pair keeps the larger share of itself.
        rounded = tf.round(tf.maximum(quantile, 1.0 - quantile) / _WEIGHT_STEP) * _WEIGHT_STEP
        own_weight = tf.where(is_mixup, rounded, 1.0)
    box = tf.zeros([tf.shape(uniforms)[0], 4])
    if cutmix_alpha:
        cut = tf.sqrt(1.0 - _beta_quantile(weight, cutmix_alpha)) / 2.0
        # Clipped at the border, as in the paper; the share is computed from the clipped area.
        ends = tf.stack([y - cut, x - cut, y + cut, x + cut], axis=1)
        box = tf.round(tf.clip_by_value(ends, 0.0, 1.0) * image_size_px) * tf.cast(~is_mixup, tf.float32)[:, tf.newaxis]
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = own_weight * (1.0 - area / image_size_px**2)
    return tf.concat([own_weight[:, tf.newaxis], box, share[:, tf.newaxis]], axis=1)


def mix_pairs(images: Tensor, targets: Tensor, mixes: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each pair of images and their targets.

    Args:
        images: [b, size, size, 3] float32.
        targets: [b, num_classes] float32.
        mixes: [b, NUM_COLUMNS] float32, see `choose_mixes`.
        positions: [b] int64, in the stream of examples.

    Returns:
        Images and targets of the same shapes.
    """
    mixes = pair_mixes(mixes, positions)
    own_weight, box, share = mixes[:, :1], mixes[:, 1:5], mixes[:, 5:]
    partners = swap_pairs(images)
    mixed = partners + own_weight[:, :, tf.newaxis, tf.newaxis] * (images - partners)
    mixed = tf.where(inside_of(box, images.shape[1]), partners, mixed)
    return mixed, share * targets + (1.0 - share) * swap_pairs(targets)


def pair_mixes(mixes: Tensor, positions: Tensor) -> Tensor:
    """Return the mix of each row: the one drawn for the first of its pair, or none for a row without a partner."""
    num_paired = positions.shape[0] // 2 * 2
    is_second = (np.arange(positions.shape[0]) % 2).astype(bool)
    first = tf.where(is_second[:, np.newaxis], swap_pairs(mixes), mixes)
    steps = tf.where(is_second, -1, 1)
    has_partner = tf.equal(swap_pairs(positions), positions + tf.cast(steps, positions.dtype))
    has_partner &= np.arange(positions.shape[0]) < num_paired
    no_mix = tf.constant([1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    return tf.where(has_partner[:, tf.newaxis], first, no_mix)


def swap_pairs(rows: Tensor) -> Tensor:
    """Return rows 1, 0, 3, 2... of [b, ...]; the last of an odd number stays."""
    num_paired = rows.shape[0] // 2 * 2
    pairs = tf.reshape(rows[:num_paired], [num_paired // 2, 2, *rows.shape[1:]])
    swapped = tf.reshape(tf.reverse(pairs, [1]), [num_paired, *rows.shape[1:]])
    return swapped if num_paired == rows.shape[0] else tf.concat([swapped, rows[num_paired:]], axis=0)


def inside_of(boxes: Tensor, size: int) -> Tensor:
    """Return a mask [b, size, size, 1] of the pixels within boxes [b, 4] of top, left, bottom and right in px."""
    top, left, bottom, right = (edge[:, tf.newaxis] for edge in tf.unstack(boxes, axis=1))
    index = np.arange(size, dtype=np.float32)[np.newaxis]
    rows, columns = (index >= top) & (index < bottom), (index >= left) & (index < right)
    return (rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :])[..., tf.newaxis]


def _beta_quantile(uniforms: Tensor, alpha: float) -> Tensor:
    """Map uniform [n] in [0, 1) to Beta(alpha, alpha), by linear interpolation between tabulated quantiles."""
    table = tf.constant(_tabulate_beta(alpha))
    position = uniforms * _NUM_QUANTILES
    below = tf.floor(position)
    index = tf.cast(below, tf.int32)
    return tf.gather(table, index) * (below + 1.0 - position) + tf.gather(table, index + 1) * (position - below)


def _tabulate_beta(alpha: float) -> npt.NDArray[np.float32]:
    """Tabulate quantiles 0, 1/4096, ... 1 of Beta(alpha, alpha), [4097], from its CDF on a logistic grid."""
    x = 1.0 / (1.0 + np.exp(-np.linspace(-400.0, 400.0, 80_001)))
    # Computed outside the graph being traced; the table is a constant of it.
    with tf.init_scope(), tf.device("cpu"):
        distribution = tf.math.betainc(tf.constant(alpha, tf.float64), alpha, x).numpy()
    return np.interp(np.linspace(0.0, 1.0, _NUM_QUANTILES + 1), distribution, x).astype(np.float32)
