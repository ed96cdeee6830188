"""Fast path for files that decode correctly without a full header check, which most requests hold.

Compare `trainer.data.preparation.images.image_header`, which does the same for `prepare`.
"""

from typing import Any

import tensorflow as tf

from export.convert.file_headers import (
    CMYK,
    JPEG_HEAD,
    PNG_HEAD,
    PNG_PARTS,
    begins,
    contains,
    jpeg_size,
    png_size,
    product,
)
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry

Tensor = Any


def are_plain(encoded: Tensor) -> Tensor:
    """Return which files, [batch] string, TensorFlow decodes like an image viewer, if whole and with 3 channels.

    Vectorised, without false positives: JPEG without EXIF and XMP, PNG without alpha and with 8 bits or fewer.
    """
    is_jpeg = begins(encoded, JPEG_HEAD) & ~contains(encoded, rb"Exif\x00\x00|rientation")
    # Bit depth and colour type of a PNG.
    depth_and_colour = tf.strings.regex_full_match(encoded, rb"\C{12}IHDR\C{8}[\x01\x02\x04\x08][\x00\x02\x03]\C*")
    is_png = begins(encoded, PNG_HEAD) & depth_and_colour & ~contains(encoded, PNG_PARTS)
    return is_jpeg | is_png


def load_plain(encoded: Tensor, is_plain: Tensor, max_pixels: Tensor, geometry: Geometry) -> Tensor:
    """Decode one of `are_plain` to [size, size, 3] uint8.

    Raises (when run) InvalidArgumentError if it is not plain, is broken, or has more than `max_pixels`.
    """
    height, width, colours = tf.cond(
        begins(encoded, JPEG_HEAD), lambda: jpeg_size(encoded), lambda: (*png_size(encoded), tf.constant(3))
    )
    is_right = is_plain & (product(height, width) <= max_pixels) & (colours != CMYK)
    with tf.control_dependencies([tf.debugging.Assert(is_right, ["not plain"])]):
        encoded = tf.identity(encoded)
    return preprocess.resize_image(preprocess.decode_not_webp(encoded), geometry)
