"""Colour operations on a batch of images, each image by its own amount: Pillow's, in whole numbers.

Images are [b, size, size, 3] float32 with whole numbers from 0 to 255, before and after each operation. Factors are
multiples of `FACTOR_STEP`. So every intermediate is exact in float32 or far from a rounding boundary, and all devices,
with or without XLA, give the same pixels. Results differ from Pillow's by at most one value, because they are rounded
and Pillow truncates.
"""

import enum
from typing import Any

import tensorflow as tf

Tensor = Any

FACTOR_STEP = 2.0**-8
# Weights of red, green and blue in 1/65536, as in Pillow's conversion to greyscale (ITU-R BT.601).
_LUMA = (19595.0, 38470.0, 7471.0)


class ColorOperation(enum.IntEnum):
    """The colour operations of RandAugment; the comments say what `level` means."""

    NONE = 0
    BRIGHTNESS = 1  # factor: 0 is black, 1 the image
    CONTRAST = 2  # factor: 0 is the mean grey
    COLOR = 3  # factor: 0 is greyscale
    SHARPNESS = 4  # factor: 0 is smoothed
    POSTERIZE = 5  # values are rounded down to multiples of it, a power of two
    SOLARIZE = 6  # values from it upwards are inverted: 256 inverts none, 0 all
    AUTOCONTRAST = 7
    EQUALIZE = 8


def jitter_colors(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation by `factors` [b, 3]; 1 changes nothing."""
    brightness, contrast, saturation = (f[:, tf.newaxis, tf.newaxis, tf.newaxis] for f in tf.unstack(factors, axis=1))
    images = _blend(0.0, images, brightness)
    images = _blend(_mean_grey(_grey(images)), images, contrast)
    return _blend(_grey(images), images, saturation)


def change_colors(images: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
    """Apply to each image its `ColorOperation`, `operations` [b] float32, at its level [b] float32."""
    images = _look_up(images, _tables(images, operations, levels))
    operations, levels = (t[:, tf.newaxis, tf.newaxis, tf.newaxis] for t in (operations, levels))
    grey = _grey(images)
    degenerate = _smooth(images)
    for operation, other in (
        (ColorOperation.BRIGHTNESS, 0.0),
        (ColorOperation.CONTRAST, _mean_grey(grey)),
        (ColorOperation.COLOR, grey),
    ):
        degenerate = tf.where(operations == operation, other, degenerate)
    is_blend = (operations >= ColorOperation.BRIGHTNESS) & (operations <= ColorOperation.SHARPNESS)
    return _blend(degenerate, images, tf.where(is_blend, levels, 1.0))


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return tf.clip_by_value(tf.round(degenerate + factor * (images - degenerate)), 0.0, 255.0)


def _grey(images: Tensor) -> Tensor:
    """Convert to greyscale, [b, size, size, 1]."""
    sums = tf.reduce_sum(images * tf.constant(_LUMA), axis=-1, keepdims=True)
    return tf.floor((sums + 32768.0) / 65536.0)


def _mean_grey(grey: Tensor) -> Tensor:
    """Return the rounded mean, [b, 1, 1, 1]; the sum over an image is too large for float32."""
    rows = tf.cast(tf.reduce_sum(grey, axis=2, keepdims=True), tf.float64)
    # A quarter added to the sum keeps every mean off a rounding boundary.
    sums = tf.reduce_sum(rows, axis=1, keepdims=True) + 0.25
    return tf.cast(tf.round(sums / (grey.shape[1] * grey.shape[2])), tf.float32)


def _smooth(images: Tensor) -> Tensor:
    """Average each pixel, with weight 5, and its 8 neighbours; leave the border unchanged."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4.0 * images[:, 1:-1, 1:-1]
    inner = tf.round(sums / 13.0)
    middle = tf.concat([images[:, 1:-1, :1], inner, images[:, 1:-1, -1:]], axis=2)
    return tf.concat([images[:, :1], middle, images[:, -1:]], axis=1)


def _tables(images: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
    """Return lookup tables, [b, 3, 256], for the operations that map one value at a time."""
    operations, levels = operations[:, tf.newaxis, tf.newaxis], levels[:, tf.newaxis, tf.newaxis]
    values = tf.range(256, dtype=tf.float32)
    histograms = _histograms(images)
    step = tf.maximum(levels, 1.0)
    tables = tf.broadcast_to(values, tf.shape(histograms))
    for operation, table in (
        (ColorOperation.POSTERIZE, _floor_divide(values, step) * step),
        (ColorOperation.SOLARIZE, tf.where(values < levels, values, 255.0 - values)),
        (ColorOperation.AUTOCONTRAST, _stretch(histograms, values)),
        (ColorOperation.EQUALIZE, _equalize(histograms, values)),
    ):
        tables = tf.where(operations == operation, table, tables)
    return tables


def _stretch(histograms: Tensor, values: Tensor) -> Tensor:
    """Stretch linearly so that the lowest value becomes 0 and the highest 255."""
    is_there = histograms > 0
    low = tf.reduce_min(tf.where(is_there, values, 255.0), axis=-1, keepdims=True)
    high = tf.reduce_max(tf.where(is_there, values, 0.0), axis=-1, keepdims=True)
    stretched = _floor_divide((values - low) * 255.0, tf.maximum(high - low, 1.0))
    return tf.where(high > low, tf.clip_by_value(stretched, 0.0, 255.0), values)


def _equalize(histograms: Tensor, values: Tensor) -> Tensor:
    """Equalize the histogram; one of a single value, or nearly so, is left unchanged."""
    last = tf.reduce_max(tf.where(histograms > 0, values, 0.0), axis=-1, keepdims=True)
    num_of_last = tf.reduce_sum(tf.where(values == last, histograms, 0.0), axis=-1, keepdims=True)
    step = _floor_divide(tf.reduce_sum(histograms, axis=-1, keepdims=True) - num_of_last, 255.0)
    safe_step = tf.maximum(step, 1.0)
    num_below = tf.cumsum(histograms, axis=-1, exclusive=True) + tf.floor(safe_step / 2.0)
    return tf.where(step > 0, tf.minimum(_floor_divide(num_below, safe_step), 255.0), values)


def _floor_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide whole numbers and round down; the added half keeps quotients away from whole numbers."""
    return tf.floor((numerator + 0.5) / denominator)


def _histograms(images: Tensor) -> Tensor:
    """Count the pixels of each value per image and channel, [b, 3, 256]."""
    num_images = tf.shape(images)[0]
    channels = tf.range(3 * num_images, dtype=tf.float32) * 256.0
    bins = images + tf.reshape(channels, [num_images, 1, 1, 3])
    flat = tf.reshape(tf.cast(bins, tf.int32), [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(flat, tf.float32), flat, num_images * 768)
    return tf.reshape(counts, [num_images, 3, 256])


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    bins = tf.cast(images + tf.constant([0.0, 256.0, 512.0]), tf.int32)
    num_images = tf.shape(images)[0]
    flat = tf.gather(tf.reshape(tables, [num_images, 768]), tf.reshape(bins, [num_images, -1]), batch_dims=1)
    return tf.reshape(flat, tf.shape(images))
