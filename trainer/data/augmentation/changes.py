"""Draw, on the host, the random changes that the device applies to each image, in whole pixels and exact factors.

The device draws no random numbers and makes no decision that rounding could change. The changes travel as one small
vector per image, `Batch.randomness`.
"""

import math
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.data.augmentation import affine, mixing, randaugment, warp
from trainer.data.augmentation.color_operations import FACTOR_STEP
from trainer.data.augmentation.presets import Augmentation
from trainer.data.sampling.order import Purpose
from trainer.data.sampling.permutation import make_keys

Tensor = Any

# Random erasing (Zhong et al. 2020, arXiv:1708.04896): share of the image's area, and height over width.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)


class DeviceChanges(NamedTuple):
    """The changes of n images, float32, in the order of application; None if the augmentation lacks a change."""

    flip: Tensor | None = None  # [n, 1]: 1 mirrors left and right
    warp: Tensor | None = None  # [n, 6]: see `warp.warp_images`
    jitter: Tensor | None = None  # [n, 3]: see `color_operations.jitter_colors`
    operations: Tensor | None = None  # [n, num_layers]: see `color_operations.change_colors`
    levels: Tensor | None = None  # [n, num_layers]
    erasing: Tensor | None = None  # [n, 7]: top, left, bottom, right in px, and an RGB colour
    mixing: Tensor | None = None  # [n, 6]: see `mixing.choose_mixes`; the first image of a pair decides

    def pack(self) -> Tensor:
        """Concatenate all changes that are not None to [n, k]."""
        return tf.concat([part for part in self if part is not None], axis=1)


def num_columns(augmentation: Augmentation) -> dict[str, int]:
    """Return the number of columns of each change that `augmentation` makes, by field of `DeviceChanges`, in order."""
    num_layers = augmentation.randaugment_layers
    columns = {
        "flip": 1 if augmentation.flip else 0,
        "warp": 6 if num_layers or augmentation.warps else 0,
        "jitter": 3 if augmentation.color_jitter else 0,
        "operations": num_layers,
        "levels": num_layers,
        "erasing": 7 if augmentation.erasing else 0,
        "mixing": mixing.NUM_COLUMNS if augmentation.mixes else 0,
    }
    return {name: number for name, number in columns.items() if number}


def unpack(augmentation: Augmentation, randomness: Tensor) -> DeviceChanges:
    """Invert `DeviceChanges.pack` for [n, k] drawn for the same augmentation."""
    columns = num_columns(augmentation)
    assert randomness.shape[1] == sum(columns.values()), "the randomness was drawn for another augmentation"
    parts = tf.split(randomness, list(columns.values()), axis=1)
    return DeviceChanges(**dict(zip(columns, parts, strict=True)))


def draw_randomness(
    augmentation: Augmentation, *, seed: int, visits: Tensor, examples: Tensor, image_size_px: int
) -> Tensor:
    """Draw the changes of n images on the host, each a function of (seed, visit, example) alone.

    `visits` and `examples` are [n] int64, see `order.Draws`; `image_size_px` is the side of the images to change.

    Returns:
        [n, k] float32, for `Batch.randomness`; k depends on `augmentation` alone (0 without changes on the device).
    """
    if not augmentation.changes_on_device:
        return tf.zeros([tf.shape(examples)[0], 0])

    def draw(purpose: Purpose, num_values: int) -> Tensor:
        return _uniforms(make_keys(seed, purpose.value, visits, examples), num_values)

    num_layers = augmentation.randaugment_layers
    # All are drawn, needed or not, so that the draws of one setting do not depend on the others.
    flip, jitter, erasing, layers = tf.split(
        draw(Purpose.DEVICE_AUGMENTATION, 12 + num_layers), [1, 3, 8, num_layers], axis=1
    )
    changes = DeviceChanges(
        flip=tf.round(flip) if augmentation.flip else None,
        jitter=_choose_factors(jitter, augmentation.color_jitter) if augmentation.color_jitter else None,
        erasing=_choose_erasing(erasing, augmentation.erasing, image_size_px) if augmentation.erasing else None,
    )
    if augmentation.warps:
        matrices = affine.choose(
            draw(Purpose.AFFINE, affine.NUM_UNIFORMS),
            rotation_degrees=augmentation.rotation_degrees,
            shift=augmentation.shift,
            zoom=augmentation.zoom,
            image_size_px=image_size_px,
        )
        changes = changes._replace(warp=matrices)
    if num_layers:
        chosen = randaugment.choose(layers, augmentation.randaugment_magnitude, image_size_px)
        matrices = chosen.matrices if changes.warp is None else warp.compose(changes.warp, chosen.matrices)
        changes = changes._replace(warp=matrices, operations=chosen.operations, levels=chosen.levels)
    if augmentation.mixes:
        mixes = mixing.choose_mixes(
            draw(Purpose.MIXING, mixing.NUM_UNIFORMS),
            mixup_alpha=augmentation.mixup_alpha,
            cutmix_alpha=augmentation.cutmix_alpha,
            image_size_px=image_size_px,
        )
        changes = changes._replace(mixing=mixes)
    return changes.pack()


def _uniforms(keys: Tensor, num_values: int) -> Tensor:
    """Return [n, num_values] float32 in [0, 1), each row a function of its key; TensorFlow's take one key per call."""
    bits = make_keys(keys[:, tf.newaxis], tf.range(num_values, dtype=tf.int64))
    top = tf.bitwise.right_shift(bits, tf.constant(64 - 24, tf.uint64))
    # As many bits as a float32 holds.
    return tf.cast(tf.cast(top, tf.int32), tf.float32) * 2.0**-24


def _choose_factors(uniforms: Tensor, strength: float) -> Tensor:
    """Map [n, 3] to factors from 1 - `strength` to 1 + `strength`, in multiples of `FACTOR_STEP`."""
    return tf.round((1.0 + strength * (2.0 * uniforms - 1.0)) / FACTOR_STEP) * FACTOR_STEP


def _choose_erasing(uniforms: Tensor, probability: float, image_size_px: int) -> Tensor:
    """Return [n, 7]: a rectangle in whole pixels, empty if nothing is erased, and the colour to fill it with."""
    is_erased, area, aspect, y, x = (u for u in tf.unstack(uniforms[:, :5], axis=1))
    area = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * area
    low, high = (math.log(ratio) for ratio in _ERASED_ASPECT)
    aspect = tf.exp(low + (high - low) * aspect)
    height, width = (
        tf.clip_by_value(tf.round(image_size_px * tf.sqrt(share)), 1.0, float(image_size_px))
        for share in (area * aspect, area / aspect)
    )
    top, left = tf.floor(y * (image_size_px - height + 1)), tf.floor(x * (image_size_px - width + 1))
    bottom = tf.where(is_erased < probability, top + height, top)
    colors = tf.floor(uniforms[:, 5:] * 256.0)
    return tf.concat([tf.stack([top, left, bottom, left + width], axis=1), colors], axis=1)
