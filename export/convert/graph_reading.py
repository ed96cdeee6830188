"""Decode image files in a TensorFlow graph as `image_file` does, or return a status that says why not.

A graph has only TensorFlow's decoders. Where they differ from an image viewer, operations correct the result (EXIF
orientation, PNG transparency, first frame of a GIF) or the header check refuses the file. The number of pixels is
bounded before anything is decoded.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from export.convert import file_headers
from export.convert.file_headers import (
    CMYK,
    JPEG_HEAD,
    PNG_HEAD,
    PNG_PARTS,
    begins,
    contains,
    jpeg_size,
    number,
    png_size,
    product,
)
from export.files.statuses import (
    STATUS_ANIMATED,
    STATUS_CMYK,
    STATUS_NOT_AN_IMAGE,
    STATUS_OK,
    STATUS_ROTATED,
    STATUS_SIXTEEN_BIT,
    STATUS_TOO_LARGE,
    STATUS_TRANSPARENT,
    STATUS_UNDECODABLE,
    STATUS_UNSUPPORTED,
)
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.decode.limits import MAX_IMAGE_PIXELS

Tensor = Any

# Compositing on white takes 28 bytes a pixel.
MAX_TRANSPARENT_PIXELS = 2**24
_GREY_ALPHA, _RGB_ALPHA = 4, 6
_PALETTE_BMP, _RGB_BMP = 8, 24
# Flags of extended WebP (VP8X).
_WEBP_ANIMATION, _WEBP_XMP, _WEBP_EXIF, _WEBP_ALPHA = 0x02, 0x04, 0x08, 0x10


class Reading(NamedTuple):
    """How to decode a file; all fields are scalars.

    Attributes:
        status: string, one of STATUSES.
        num_pixels: int64.
        orientation: int32, EXIF value; 0 or 1 is upright.
        is_transparent: bool, has an alpha channel to composite on white.
        end: int32, number of bytes to decode; -1 for all.
    """

    status: Tensor
    num_pixels: Tensor
    orientation: Tensor
    is_transparent: Tensor
    end: Tensor


READING_SPECS = Reading(*(tf.TensorSpec([], t) for t in (tf.string, tf.int64, tf.int32, tf.bool, tf.int32)))


def read_header(encoded: Tensor) -> Reading:
    """Read how to decode a file.

    Raises (when run) InvalidArgumentError for a truncated or inconsistent header.
    """
    not_an_image = _refuse(STATUS_NOT_AN_IMAGE)
    formats = [
        (begins(encoded, JPEG_HEAD), lambda: _read_jpeg(encoded)),
        (begins(encoded, PNG_HEAD), lambda: _read_png(encoded)),
        (begins(encoded, b"GIF8"), lambda: _read_gif(encoded)),
        (begins(encoded, b"BM"), lambda: _read_bmp(encoded)),
        (_is_webp(encoded), lambda: _read_webp(encoded)),
    ]
    reading = Reading(*tf.case(formats, default=lambda: not_an_image, exclusive=True))
    size = reading.num_pixels
    is_too_large = (size > MAX_IMAGE_PIXELS) | (reading.is_transparent & (size > MAX_TRANSPARENT_PIXELS))
    # Too large to composite here only: the client can still send it on white.
    why = tf.where(size > MAX_IMAGE_PIXELS, STATUS_TOO_LARGE, STATUS_TRANSPARENT)
    return reading._replace(status=tf.where((reading.status == STATUS_OK) & is_too_large, why, reading.status))


def load_pixels(encoded: Tensor, reading: Reading, geometry: Geometry) -> Tensor:
    """Decode and resize to [size, size, 3] uint8; zeros if the status is not ok.

    Raises (when run) InvalidArgumentError for a broken image.
    """
    shape = [geometry.image_size_px, geometry.image_size_px, 3]
    pixels = tf.cond(
        reading.status == STATUS_OK,
        lambda: _load(encoded, reading, geometry),
        lambda: tf.zeros(shape, tf.uint8),
    )
    return tf.ensure_shape(pixels, shape)


def _load(encoded: Tensor, reading: Reading, geometry: Geometry) -> Tensor:
    encoded = tf.cond(
        reading.end < 0,
        lambda: encoded,
        lambda: tf.strings.join([tf.strings.substr(encoded, 0, reading.end), b";"]),
    )
    image = tf.cond(reading.is_transparent, lambda: _decode_on_white(encoded), lambda: preprocess.decode_image(encoded))
    image.set_shape([None, None, 3])
    is_upright = reading.orientation < 2
    return tf.cond(
        is_upright,
        lambda: preprocess.resize_image(image, geometry),
        lambda: _resize_turned(image, reading.orientation, geometry),
    )


def _resize_turned(image: Tensor, orientation: Tensor, geometry: Geometry) -> Tensor:
    """Resize, then turn upright, which is cheaper at the model's size."""

    def is_one_of(*orientations: int) -> Tensor:
        return tf.reduce_any(orientation == tf.constant(orientations))

    flips_rows, flips_columns, swaps = is_one_of(3, 4, 6, 7), is_one_of(2, 3, 7, 8), is_one_of(5, 6, 7, 8)
    if geometry.resize == "crop":
        # The crop offset is rounded down in the upright picture: up here if that axis is flipped.
        height, width = tf.unstack(tf.shape(image)[:2])
        side = tf.minimum(height, width)
        top = (height - side + tf.cast(flips_rows, tf.int32)) // 2
        left = (width - side + tf.cast(flips_columns, tf.int32)) // 2
        image = tf.slice(image, tf.stack([top, left, 0]), [side, side, 3])
    small = preprocess.resize_to_square(image, geometry.image_size_px)
    small = tf.where(flips_rows, small[::-1], small)
    small = tf.where(flips_columns, small[:, ::-1], small)
    return tf.where(swaps, tf.transpose(small, [1, 0, 2]), small)


def _decode_on_white(encoded: Tensor) -> Tensor:
    """Decode a PNG on white, bit for bit as `picture.to_upright_rgb` does."""
    rgba = tf.io.decode_png(encoded, channels=4)
    alpha = tf.cast(rgba[:, :, 3:], tf.uint16)
    # 255 * (value * alpha + 255 * (255 - alpha)) / 255, rounded, as Pillow's alpha_composite does.
    total = tf.cast(rgba[:, :, :3], tf.uint16) * alpha + 255 * (255 - alpha) + 128
    shift = tf.constant(8, tf.uint16)
    return tf.cast(tf.bitwise.right_shift(tf.bitwise.right_shift(total, shift) + total, shift), tf.uint8)


def _read_jpeg(encoded: Tensor) -> Reading:
    height, width, colours = jpeg_size(encoded)
    num_pixels = product(height, width)
    # The bound of `image_header.can_hold_jpeg`.
    is_cut = num_pixels > 64 * 8 * tf.cast(tf.strings.length(encoded), tf.int64)
    status = tf.where(colours == CMYK, STATUS_CMYK, tf.where(is_cut, STATUS_UNDECODABLE, STATUS_OK))
    return _reading(status, num_pixels, orientation=file_headers.jpeg_orientation(encoded))


def _read_png(encoded: Tensor) -> Reading:
    height, width = png_size(encoded)
    depth, colour = (number(encoded, at, 1, little_endian=False) for at in (24, 25))
    # Most files have no such chunk, and one regular expression finds that out.
    status, orientation, has_transparent_colours = tf.cond(
        contains(encoded, PNG_PARTS),
        lambda: _read_png_parts(encoded),
        lambda: (tf.constant(STATUS_OK), tf.constant(0), tf.constant(False)),
    )
    has_alpha = (colour == _GREY_ALPHA) | (colour == _RGB_ALPHA)
    status = tf.where(depth == 16, STATUS_SIXTEEN_BIT, status)
    return _reading(
        status,
        product(height, width),
        orientation=orientation,
        is_transparent=has_alpha | has_transparent_colours,
    )


def _read_png_parts(encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return status, orientation, and whether there may be transparent colours."""
    status, orientation = _png_orientation(encoded)
    is_animated = tf.strings.length(file_headers.png_chunk(encoded, b"acTL")) > 0
    # A chance match inside the pixels is harmless: that file's alpha channel is opaque.
    return tf.where(is_animated, STATUS_ANIMATED, status), orientation, contains(encoded, b"tRNS")


def _png_orientation(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Return the status, and the orientation from EXIF or else XMP."""
    found = file_headers.exif_orientation(file_headers.png_chunk(encoded, b"eXIf"))
    orientation = tf.where(found == 0, file_headers.xmp_orientation(encoded), found)
    # Compressed metadata, or metadata in hexadecimal digits.
    is_hidden = (found == 0) & contains(encoded, rb"Raw profile type|XML:com.adobe.xmp\x00\x01")
    return tf.where(is_hidden, STATUS_ROTATED, STATUS_OK), orientation


def _read_gif(encoded: Tensor) -> Reading:
    num_pixels = product(*(number(encoded, at, 2, little_endian=True) for at in (6, 8)))
    frame = file_headers.first_gif_frame(encoded)
    status = tf.where(frame.fills, STATUS_OK, STATUS_UNSUPPORTED)
    status = tf.where(frame.is_transparent, STATUS_TRANSPARENT, status)
    status = tf.where(frame.end > 0, status, STATUS_UNDECODABLE)
    # Later frames are cut off, since TensorFlow would decode all of them.
    return _reading(status, num_pixels, end=frame.end)


def _read_bmp(encoded: Tensor) -> Reading:
    width, height = (tf.cast(number(encoded, at, 4, little_endian=True), tf.int32) for at in (18, 22))
    header_bytes, compression = (number(encoded, at, 4, little_endian=True) for at in (14, 30))
    depth = number(encoded, 28, 2, little_endian=True)
    ramp = b"".join(bytes([i, i, i, 0]) for i in range(256))
    # TensorFlow reads palette indices as grey values, which is right only for a grey ramp.
    is_grey = (depth == _PALETTE_BMP) & (_slice(encoded, 14 + header_bytes, 1024) == ramp)
    is_plain = (compression == 0) & (header_bytes >= 40) & ((depth == _RGB_BMP) | is_grey)
    return _reading(tf.where(is_plain, STATUS_OK, STATUS_UNSUPPORTED), product(width, height))


def _read_webp(encoded: Tensor) -> Reading:
    kind = tf.strings.substr(encoded, 12, 4)
    formats = [
        (kind == b"VP8X", lambda: _read_extended_webp(encoded)),
        (kind == b"VP8L", lambda: _read_lossless_webp(encoded)),
    ]
    return Reading(*tf.case(formats, default=lambda: _read_lossy_webp(encoded), exclusive=True))


def _read_lossy_webp(encoded: Tensor) -> Reading:
    width, height = (number(encoded, at, 2, little_endian=True) % 2**14 for at in (26, 28))
    return _reading(tf.constant(STATUS_OK), product(height, width))


def _read_lossless_webp(encoded: Tensor) -> Reading:
    bits = number(encoded, 21, 4, little_endian=True)
    width, height = bits % 2**14 + 1, bits // 2**14 % 2**14 + 1
    return _reading(tf.where(bits // 2**28 % 2 == 1, STATUS_TRANSPARENT, STATUS_OK), product(height, width))


def _read_extended_webp(encoded: Tensor) -> Reading:
    flags = number(encoded, 20, 1, little_endian=True)
    width, height = (number(encoded, at, 4, little_endian=True) % 2**24 + 1 for at in (24, 27))

    def has(flag: int) -> Tensor:
        return flags // flag % 2 == 1

    status = tf.where(has(_WEBP_ALPHA), STATUS_TRANSPARENT, STATUS_OK)
    status = tf.where(has(_WEBP_ANIMATION), STATUS_ANIMATED, status)
    orientation = tf.cond(has(_WEBP_EXIF) | has(_WEBP_XMP), lambda: _webp_orientation(encoded), lambda: tf.constant(0))
    return _reading(status, product(height, width), orientation=orientation)


def _webp_orientation(encoded: Tensor) -> Tensor:
    exif = tf.strings.regex_replace(file_headers.webp_chunk(encoded, b"EXIF"), rb"^Exif\x00\x00", b"")
    found = file_headers.exif_orientation(exif)
    return tf.where(found == 0, file_headers.xmp_orientation(file_headers.webp_chunk(encoded, b"XMP ")), found)


def _reading(
    status: Tensor,
    num_pixels: Tensor,
    *,
    orientation: Tensor = 0,
    is_transparent: Tensor = False,
    end: Tensor = -1,
) -> Reading:
    return Reading(
        status=status,
        num_pixels=num_pixels,
        orientation=tf.convert_to_tensor(orientation, tf.int32),
        is_transparent=tf.convert_to_tensor(is_transparent, tf.bool),
        end=tf.convert_to_tensor(end, tf.int32),
    )


def _refuse(status: str) -> Reading:
    return _reading(tf.constant(status), tf.constant(0, tf.int64))


def _slice(encoded: Tensor, start: Tensor, num_bytes: int) -> Tensor:
    """Return up to `num_bytes` from `start`, fewer at the end."""
    start = tf.minimum(start, tf.cast(tf.strings.length(encoded), tf.int64))
    return tf.strings.substr(encoded, start, tf.constant(num_bytes, tf.int64))


def _is_webp(encoded: Tensor) -> Tensor:
    return tf.strings.regex_full_match(tf.strings.substr(encoded, 0, 12), rb"RIFF\C{4}WEBP")
