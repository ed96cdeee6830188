"""Read headers of image files in a TensorFlow graph: the half of `image_file` that needs no pixels.

All functions take a scalar string and return scalars. A truncated or inconsistent header raises InvalidArgumentError
when run.

Sources: PNG ISO/IEC 15948, JPEG ITU-T T.81, EXIF JEITA CP-3451 (a TIFF structure), GIF89a, RIFF containers of WebP.
"""

from typing import Any, NamedTuple

import tensorflow as tf

Tensor = Any

_ORIENTATION_TAG = 0x0112
# Types of a TIFF entry that a small number is written in: BYTE, SHORT, LONG.
_BYTE, _SHORT, _LONG = 1, 3, 4
# The pattern of PIL.Image.Image.getexif.
_XMP_ORIENTATION = rb'tiff:Orientation(?:="|>)([0-9])'
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xDA, 0xD9
JPEG_HEAD, PNG_HEAD = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that may change how it is decoded.
PNG_PARTS = b"tRNS|acTL|eXIf|Raw profile type|XML:com.adobe.xmp"
# Number of JPEG components.
CMYK = 4
# GIFs with more blocks than this (4 MB, as programs write them) are not scanned.
_MAX_GIF_BLOCKS = 2**14


def contains(encoded: Tensor, pattern: bytes) -> Tensor:
    """Return whether the regular expression `pattern` matches anywhere."""
    return tf.strings.regex_full_match(encoded, rb"\C*(?:" + pattern + rb")\C*")


def number(encoded: Tensor, position: Tensor, num_bytes: int, *, little_endian: bool) -> Tensor:
    """Return the unsigned 1, 2 or 4 byte number at `position`, int64."""
    dtype = {1: tf.uint8, 2: tf.uint16, 4: tf.int32}[num_bytes]
    raw = tf.io.decode_raw(tf.strings.substr(encoded, position, num_bytes), dtype, little_endian=little_endian)
    value = tf.cast(raw[0], tf.int64)
    return value % 2**32 if num_bytes == 4 else value


def begins(encoded: Tensor, head: bytes) -> Tensor:
    return tf.strings.substr(encoded, 0, len(head)) == head


def product(height: Tensor, width: Tensor) -> Tensor:
    # Clip to the longest side of any format, so that the product fits int64.
    sides = (tf.minimum(tf.abs(tf.cast(side, tf.int64)), 2**31 - 1) for side in (height, width))
    return tf.math.multiply(*sides)


def png_size(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Return height and width, int64."""
    return number(encoded, 20, 4, little_endian=False), number(encoded, 16, 4, little_endian=False)


def jpeg_size(encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return height and width, int64, and the number of components, int32."""
    height, width, colours = tf.unstack(tf.image.extract_jpeg_shape(encoded, output_type=tf.int32))
    return tf.cast(height, tf.int64), tf.cast(width, tf.int64), colours


class Gif(NamedTuple):
    """The first frame of a GIF.

    Attributes:
        end: byte offset behind the frame, or 0 if there is no frame.
        fills: whether the frame covers the whole canvas.
        is_transparent: whether the file declares a transparent colour.
    """

    end: Tensor
    fills: Tensor
    is_transparent: Tensor


def exif_orientation(exif: Tensor) -> Tensor:
    """Return the orientation in a TIFF structure, int32, or 0 if it has none."""
    return tf.cond(tf.strings.length(exif) < 14, lambda: tf.constant(0), lambda: _tiff_orientation(exif))


def _tiff_orientation(exif: Tensor) -> Tensor:
    is_little = tf.strings.substr(exif, 0, 2) == b"II"
    return tf.cond(is_little, lambda: _find_entry(exif, little=True), lambda: _find_entry(exif, little=False))


def _find_entry(exif: Tensor, *, little: bool) -> Tensor:
    """Return the orientation in the first directory of a TIFF structure."""
    length = tf.strings.length(exif)
    start = tf.cast(tf.minimum(number(exif, 4, 4, little_endian=little), tf.cast(length, tf.int64) - 2), tf.int32)
    count = tf.cast(number(exif, start, 2, little_endian=little), tf.int32)
    whole = tf.minimum(count, (length - start - 2) // 12)
    raw = tf.io.decode_raw(tf.strings.substr(exif, start + 2, 12 * whole), tf.uint8)
    rows = tf.cast(tf.reshape(raw, [-1, 12]), tf.int32)

    def read(first: int, num_bytes: int) -> Tensor:
        columns = range(first, first + num_bytes)
        parts = [rows[:, i] * 256 ** (n if little else num_bytes - 1 - n) for n, i in enumerate(columns)]
        return tf.add_n(parts)

    tag, kind, many = read(0, 2), read(2, 2), read(4, 4)
    value = tf.where(kind == _SHORT, read(8, 2), tf.where(kind == _BYTE, read(8, 1), read(8, 4)))
    is_number = (kind == _SHORT) | (kind == _BYTE) | (kind == _LONG)
    found = tf.boolean_mask(value, (tag == _ORIENTATION_TAG) & is_number & (many == 1))
    return tf.concat([[0], found], axis=0)[-1]


def xmp_orientation(text: Tensor) -> Tensor:
    """Return the first XMP orientation inside `text`, int32, or 0 if there is none."""
    pattern = rb"\C*?" + _XMP_ORIENTATION + rb"\C*"
    digit = tf.strings.regex_replace(text, pattern, rb"\1")
    return tf.cond(
        tf.strings.regex_full_match(text, pattern),
        lambda: tf.strings.to_number(digit, tf.int32),
        lambda: tf.constant(0),
    )


def jpeg_orientation(encoded: Tensor) -> Tensor:
    """Return the orientation from EXIF, else XMP, before the scan, int32; 0 if there is none."""
    # Most files have neither; a regular expression is cheaper than walking the segments.
    return tf.cond(contains(encoded, rb"Exif\x00\x00|rientation"), lambda: _walk_jpeg(encoded), lambda: tf.constant(0))


def _walk_jpeg(encoded: Tensor) -> Tensor:
    length = tf.strings.length(encoded)

    def is_going(position: Tensor, going: Tensor, exif: Tensor, xmp: Tensor) -> Tensor:
        return going & (position + 4 <= length)

    def step(position: Tensor, going: Tensor, exif: Tensor, xmp: Tensor) -> Any:
        start, marker = (number(encoded, position + i, 1, little_endian=False) for i in (0, 1))
        size = tf.cast(number(encoded, position + 2, 2, little_endian=False), tf.int32)
        body = tf.strings.substr(encoded, position + 4, tf.maximum(size - 2, 0))
        is_app1 = marker == _APP1
        is_exif = is_app1 & (tf.strings.substr(body, 0, 6) == b"Exif\0\0")
        is_xmp = is_app1 & (tf.strings.substr(body, 0, len(_XMP_HEAD)) == _XMP_HEAD)
        exif = tf.where(is_exif, tf.strings.join([exif, tf.strings.substr(body, 6, -1)]), exif)
        xmp = tf.where(is_xmp, body, xmp)
        ends = (start != 0xFF) | (marker == _START_OF_SCAN) | (marker == _END_OF_IMAGE)
        # 0xFF may be repeated before a marker.
        return tf.where(marker == 0xFF, position + 1, position + 2 + size), ~ends, exif, xmp

    state = (tf.constant(2), tf.constant(True), tf.constant(b""), tf.constant(b""))
    _, _, exif, xmp = tf.while_loop(is_going, step, state, parallel_iterations=1)
    found = exif_orientation(exif)
    return tf.where(found == 0, xmp_orientation(xmp), found)


def png_chunk(encoded: Tensor, kind: bytes) -> Tensor:
    """Return the content of the first PNG chunk of `kind`, or an empty string."""
    length = tf.strings.length(encoded, "BYTE")
    step = _Step(first=8, kind_at=4, size_at=0, overhead=12, little_endian=False, pads=False)
    return _find_chunk(encoded, kind, length, step)


def webp_chunk(encoded: Tensor, kind: bytes) -> Tensor:
    """Return the content of the first RIFF chunk of `kind`, or an empty string."""
    length = tf.strings.length(encoded, "BYTE")
    step = _Step(first=12, kind_at=0, size_at=4, overhead=8, little_endian=True, pads=True)
    return _find_chunk(encoded, kind, length, step)


class _Step(NamedTuple):
    first: int
    kind_at: int
    size_at: int
    overhead: int
    little_endian: bool
    pads: bool


def _find_chunk(encoded: Tensor, kind: bytes, length: Tensor, step: _Step) -> Tensor:
    limit = tf.cast(length, tf.int64)

    def is_going(position: Tensor, found: Tensor) -> Tensor:
        return (tf.strings.length(found) == 0) & (position + 8 <= limit)

    def walk(position: Tensor, found: Tensor) -> Any:
        size = number(encoded, position + step.size_at, 4, little_endian=step.little_endian)
        is_it = tf.strings.substr(encoded, position + step.kind_at, tf.constant(4, tf.int64)) == kind
        body = tf.strings.substr(encoded, position + 8, tf.where(is_it, size, 0))
        return position + step.overhead + size + (size % 2 if step.pads else 0), body

    state = (tf.constant(step.first, tf.int64), tf.constant(b""))
    return tf.while_loop(is_going, walk, state, parallel_iterations=1)[1]


def first_gif_frame(encoded: Tensor) -> Gif:
    """Find the end of a GIF's first frame and its place on the canvas."""
    raw = tf.io.decode_raw(encoded, tf.uint8)
    length = tf.size(raw)

    def byte(position: Tensor) -> Tensor:
        return tf.cast(raw[position], tf.int32)

    def table_bytes(flags: Tensor) -> Tensor:
        return tf.where(flags >= 128, 3 * tf.bitwise.left_shift(1, (flags & 7) + 1), 0)

    def is_going(position: Tensor, in_blocks: Tensor, frame: Tensor, done: Tensor, is_transparent: Tensor) -> Tensor:
        return ~done & (position + 10 < length)

    def step(position: Tensor, in_blocks: Tensor, frame: Tensor, done: Tensor, is_transparent: Tensor) -> Any:
        first = byte(position)
        is_frame = ~in_blocks & (first == 0x2C)
        is_extension = ~in_blocks & (first == 0x21)
        ends_blocks = in_blocks & (first == 0)
        is_control = is_extension & (byte(position + 1) == 0xF9)
        is_transparent |= is_control & (byte(position + 3) % 2 == 1)
        behind_frame = position + 10 + table_bytes(byte(position + 9)) + 1
        behind = tf.where(is_frame, behind_frame, tf.where(is_extension, position + 2, position + 1 + first))
        is_odd = ~in_blocks & ~is_frame & ~is_extension
        done = is_odd | (ends_blocks & (frame > 0))
        return behind, (in_blocks & ~ends_blocks) | is_frame | is_extension, (
            tf.where(is_frame, position, frame)
        ), done, is_transparent  # fmt: skip

    start = 13 + table_bytes(byte(10))
    state = (start, tf.constant(False), tf.constant(0), tf.constant(False), tf.constant(False))
    loop = tf.while_loop(is_going, step, state, parallel_iterations=1, maximum_iterations=_MAX_GIF_BLOCKS)
    position, _, frame, done, is_transparent = loop
    # The last ten bytes, which the loop skips, are too short for a second frame.
    end = tf.where(done, position, tf.where(position + 10 < length, 0, length))
    end = tf.where(frame > 0, end, 0)
    place, canvas = tf.strings.substr(encoded, frame + 1, 8), tf.strings.substr(encoded, 6, 4)
    fills = place == tf.strings.join([b"\0\0\0\0", canvas])
    return Gif(end=end, fills=fills, is_transparent=is_transparent)
