"""Convert encoded bytes to the model's input; training, evaluation, export and serving share this definition.

Steps: decode to [height, width, 3] uint8 RGB; take the centred square or the whole image, by `Geometry.resize`; resize
bilinearly with antialiasing to the model's size; round to uint8. The scaling of pixel values for the backbone is a
layer of the model itself (see `model.classifier`), so every runtime applies it.
"""

from typing import Any

import tensorflow as tf

from trainer.data.decode.geometry import Geometry

Tensor = Any

# Version of the pixels from `load_image`. Increase it with any change to them, so that old caches are not used.
VERSION = 1


def decode_image(encoded: Tensor) -> Tensor:
    """Decode JPEG, PNG, GIF (first frame), BMP or WebP bytes, a scalar string, to [height, width, 3] uint8.

    An alpha channel is dropped. The EXIF orientation is not applied. Files that TensorFlow decodes wrong (palette BMP,
    transparency over other colours) are re-encoded by `image_check` when a dataset is prepared.

    When run, it raises tf.errors.InvalidArgumentError for other formats, corrupt or truncated bytes, and WebP with
    transparency or animation.
    """
    # substr takes at most 12 bytes, and also works on an empty string.
    is_webp = tf.strings.regex_full_match(tf.strings.substr(encoded, 0, 12), rb"RIFF\C{4}WEBP")
    image = tf.cond(is_webp, lambda: decode_webp(encoded), lambda: decode_not_webp(encoded))
    image.set_shape([None, None, 3])
    return image


def decode_webp(encoded: Tensor) -> Tensor:
    """Decode like `decode_image`, for bytes known to be WebP."""
    # [frames, height, width, 3]. Never channels=0 or 4: both let animations through, on which the kernel of
    # TensorFlow 2.21 writes past its buffer; with 3 it refuses them.
    return tf.io.decode_webp(encoded, channels=3)[0]


def decode_not_webp(encoded: Tensor) -> Tensor:
    """Decode like `decode_image`, for bytes known not to be WebP."""
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def resize_image(image: Tensor, geometry: Geometry) -> Tensor:
    """Apply `geometry` to one image [height, width, 3] uint8; return [size, size, 3] uint8."""
    if geometry.resize == "crop":
        shape = tf.shape(image)
        side = tf.minimum(shape[0], shape[1])
        image = tf.slice(image, tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, 0]), [side, side, 3])
    return resize_to_square(image, geometry.image_size_px)


def resize_to_square(image: Tensor, size_px: int) -> Tensor:
    """Resize [height, width, 3] to [size_px, size_px, 3] uint8: bilinear, antialiased, rounded to nearest."""
    resized = tf.image.resize(image, [size_px, size_px], method="bilinear", antialias=True)
    # The filter weights are positive and sum to 1, so results leave [0, 255] by less than rounding corrects.
    return tf.cast(tf.round(resized), tf.uint8)


def load_image(encoded: Tensor, geometry: Geometry) -> Tensor:
    """Decode encoded bytes and apply `geometry`: the model's input, [size, size, 3] uint8."""
    return resize_image(decode_image(encoded), geometry)
