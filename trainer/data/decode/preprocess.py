"""One definition of how encoded bytes become the model's input; training, evaluation, export and serving share it.

Steps: decode to [height, width, 3] uint8 RGB; the centred square or the whole image, by `Geometry.resize`;
bilinear resize with antialiasing to the model's size; round to uint8. The scaling of pixel values to what a
backbone was trained on is a layer of the model itself (see `model.classifier`), so every runtime gets it.
"""

from typing import Any

import tensorflow as tf

from trainer.data.decode.geometry import Geometry

Tensor = Any

# Of the pixels that `load_image` gives: to be raised by whoever changes any of them, or old caches stay in use.
VERSION = 1


def decode_image(encoded: Tensor) -> Tensor:
    """Decodes JPEG, PNG, GIF (first frame), BMP or WebP bytes, a scalar string, to [height, width, 3] uint8.

    An alpha channel is dropped. The EXIF orientation is not applied. What TensorFlow would read wrong (palette
    BMP, transparency over other colours) is re-encoded by `image_check` when a dataset is prepared.

    Raises (when run): tf.errors.InvalidArgumentError for bytes that are none of these, corrupt or truncated, and
        for WebP with transparency or animation.
    """
    # Only the head is matched, which is always there to cut, also from an empty string.
    is_webp = tf.strings.regex_full_match(tf.strings.substr(encoded, 0, 12), rb"RIFF\C{4}WEBP")
    image = tf.cond(is_webp, lambda: decode_webp(encoded), lambda: decode_not_webp(encoded))
    image.set_shape([None, None, 3])
    return image


def decode_webp(encoded: Tensor) -> Tensor:
    """`decode_image` for what is known to be WebP."""
    # [frames, height, width, 3]. Never channels=0 or 4: both let animations through, on which the kernel of
    # TensorFlow 2.21 writes past its buffer; with 3 it refuses them.
    return tf.io.decode_webp(encoded, channels=3)[0]


def decode_not_webp(encoded: Tensor) -> Tensor:
    """`decode_image` for what is known not to be WebP."""
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def resize_image(image: Tensor, geometry: Geometry) -> Tensor:
    """Applies `geometry` to one image [height, width, 3] uint8; returns [size, size, 3] uint8."""
    if geometry.resize == "crop":
        shape = tf.shape(image)
        side = tf.minimum(shape[0], shape[1])
        image = tf.slice(image, tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, 0]), [side, side, 3])
    return resize_to_square(image, geometry.image_size_px)


def resize_to_square(image: Tensor, size_px: int) -> Tensor:
    """Bilinear, antialiased resize of [height, width, 3] to [size_px, size_px, 3] uint8, rounded to nearest."""
    resized = tf.image.resize(image, [size_px, size_px], method="bilinear", antialias=True)
    # The weights of the filter are positive and add up to 1: nothing leaves [0, 255] by as much as rounding takes back.
    return tf.cast(tf.round(resized), tf.uint8)


def load_image(encoded: Tensor, geometry: Geometry) -> Tensor:
    """Encoded bytes to the model's input, [size, size, 3] uint8: decode, then `geometry`."""
    return resize_image(decode_image(encoded), geometry)
