"""Read image headers, to find files on which all decoders agree without decoding them.

PNG (ISO/IEC 15948) is lossless and has a checksum on every chunk, so every decoder gives the same pixels for a file of
plain 8-bit grey or colour, or refuses it. JPEG (ITU-T T.81) leaves decoders some freedom in rounding only: for a grey
or YCbCr file with the usual quantisation tables, upright by its EXIF and XMP, they differ by a few grey levels.
"""

import dataclasses
import functools
import io
import struct

from PIL import ExifTags, Image

_PNG_HEAD = struct.Struct(">8sI4sIIBBBBB")
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that do not affect the pixels in either decoder. Not text chunks, which may hold EXIF or XMP.
_PLAIN_CHUNKS = frozenset([b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"tIME"])
_GREY, _RGB = 0, 2

_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_HUFFMAN_TABLES, _START_OF_SCAN, _QUANTISATION_TABLES, _RESTART_INTERVAL = 0xC4, 0xDA, 0xDB, 0xDD
_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_LENGTH = struct.Struct(">H")
_FRAME = struct.Struct(">BHHB")


@dataclasses.dataclass(frozen=True, slots=True)
class PlainImage:
    """The header of an upright, opaque image on which decoders agree. `format` is "png" or "jpeg"; sizes in pixels."""

    format: str
    height: int
    width: int


def find_plain_image(encoded: bytes) -> PlainImage | None:
    """Return the header if it proves that decoders agree on `encoded` unless it is damaged; otherwise None."""
    if encoded.startswith(_PNG_SIGNATURE):
        return _plain_png(encoded)
    if encoded.startswith(_START_OF_IMAGE) and encoded.endswith(_END_OF_IMAGE):
        return _plain_jpeg(encoded)
    return None


def _plain_png(encoded: bytes) -> PlainImage | None:
    num_bytes = len(encoded)
    if num_bytes < _PNG_HEAD.size:
        return None
    _, length, kind, width, height, depth, colour, compression, filters, interlace = _PNG_HEAD.unpack_from(encoded)
    if (length, kind, depth, compression, filters) != (13, b"IHDR", 8, 0, 0) or interlace > 1:
        return None
    if colour not in (_GREY, _RGB) or not width or not height:
        return None
    position = 8 + 12 + 13
    while position + _PNG_CHUNK.size <= num_bytes:
        length, kind = _PNG_CHUNK.unpack_from(encoded, position)
        position += 12 + length
        if kind == b"IEND":
            return PlainImage("png", height, width) if length == 0 and position == num_bytes else None
        if kind not in _PLAIN_CHUNKS:
            return None
    return None


def _plain_jpeg(encoded: bytes) -> PlainImage | None:
    position, found = 2, None
    while position + 4 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        (length,) = _LENGTH.unpack_from(encoded, position + 2)
        segment = encoded[position + 4 : position + 2 + length]
        position += 2 + length
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE) and found is None:
            found = _plain_frame(segment)
            if found is None:
                return None
        elif marker == _START_OF_SCAN:
            return found if found and can_hold_jpeg(len(encoded), found.height, found.width) else None
        elif not _is_plain_segment(marker, segment):
            return None
    return None


def can_hold_jpeg(num_bytes: int, height: int, width: int) -> bool:
    """Return whether a JPEG of `num_bytes` can be complete: each block of 8 x 8 pixels takes at least one bit.

    Decoders fill in what is missing, so a few bytes could decode to a huge grey image.
    """
    return height * width <= 64 * 8 * num_bytes


def _plain_frame(segment: bytes) -> PlainImage | None:
    """Parse a frame header; return None unless it is 8-bit grey, or YCbCr with chroma at full or half size."""
    if len(segment) < _FRAME.size:
        return None
    precision, height, width, num_components = _FRAME.unpack_from(segment)
    components = [tuple(segment[start : start + 2]) for start in range(_FRAME.size, len(segment), 3)]
    is_grey = num_components == 1 and len(components) == 1
    is_ycbcr = (
        num_components == 3
        and len(components) == 3
        and components[0] in ((1, 0x11), (1, 0x21), (1, 0x12), (1, 0x22))
        and components[1:] == [(2, 0x11), (3, 0x11)]
    )
    if precision != 8 or not height or not width or not (is_grey or is_ycbcr):
        return None
    return PlainImage("jpeg", height, width)


def _is_plain_segment(marker: int, segment: bytes) -> bool:
    if marker == _QUANTISATION_TABLES:
        # A damaged table is still valid, but decoders overflow on it differently.
        tables = [segment[start : start + 65] for start in range(0, len(segment), 65)]
        return all(table[0] < 4 and table[1:] in _usual_quantisation_tables() for table in tables)
    if marker == _APP1:
        return _is_upright(segment)
    if marker == _APP2:
        return not segment.startswith(b"MPF\0")  # several pictures in one file
    if marker == _APP14:
        return len(segment) == 12 and segment.startswith(b"Adobe") and segment[11] == 1  # YCbCr
    return _APP0 <= marker <= _APP15 or marker in (_HUFFMAN_TABLES, _RESTART_INTERVAL, _COMMENT)


def _is_upright(segment: bytes) -> bool:
    if segment.startswith(b"Exif\0\0"):
        exif = Image.Exif()
        try:
            exif.load(segment)
            return bool(exif.get(ExifTags.Base.Orientation, 1) == 1)
        except Exception:  # Pillow may raise anything on hostile bytes; the full comparison decides
            return False
    return b"rientation" not in segment  # XMP, whose orientation Pillow applies too


@functools.cache
def _usual_quantisation_tables() -> frozenset[bytes]:
    """Return libjpeg's tables for each quality (the examples of T.81 Annex K, scaled), which most programs use."""
    tables = set()
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("RGB", (1, 1)).save(buffer, "JPEG", quality=quality)
        encoded = buffer.getvalue()
        start = 0
        while (start := encoded.find(b"\xff\xdb", start)) >= 0:
            tables.add(encoded[start + 5 : start + 69])
            start += 69
    return frozenset(tables)


def gif_frame_pixels(encoded: bytes, *, enough: int) -> int:
    """Count the pixels of all frames of a GIF (GIF89a specification), up to `enough`.

    TensorFlow's decoder decodes all frames, whatever their declared size, to return the first one.
    """
    if len(encoded) < 13:
        return 0
    position = 13 + _gif_table_bytes(encoded[10])
    num_pixels = 0
    while position < len(encoded) and num_pixels < enough:
        introducer = encoded[position]
        if introducer == 0x2C and position + 10 <= len(encoded):  # an image: position, size, flags, table, code size
            width, height, flags = struct.unpack_from("<HHB", encoded, position + 5)
            num_pixels += width * height
            position = _skip_gif_blocks(encoded, position + 10 + _gif_table_bytes(flags) + 1)
        elif introducer == 0x21:  # an extension: its label, then blocks
            position = _skip_gif_blocks(encoded, position + 2)
        else:  # the end, or data at which a decoder stops
            break
    return num_pixels


def _gif_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_gif_blocks(encoded: bytes, position: int) -> int:
    while position < len(encoded) and (length := encoded[position]):
        position += 1 + length
    return position + 1
