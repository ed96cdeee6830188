"""Make unusual image files, such as users send, from real samples, for the gate to test with their original bytes.

A dataset holds only what `prepare` normalised, so its images cannot show whether unusual files are decoded as in
training. The expected answer to each is the model's answer to the picture that `image_file` decodes.
"""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image, ImageOps

from export.runtime.samples import Batch, ImageSource, spread_indices
from trainer.data.decode.geometry import Geometry
from trainer.data.decode.image_file import UnreadableImage, open_picture
from trainer.data.decode.preprocess import resize_image
from trainer.errors import DataError

# Files of each kind; a wrong decoder is wrong for nearly every image.
NUM_SAMPLES = 3
# Size limit of samples: it saves time, and decoders do not depend on the size.
_MAX_SIDE_PX = 512
_ORIENTATION_TAG = 0x0112
# Decoders round differently, which coarser settings amplify and some models feel.
_FINE_JPEG: Final[dict[str, Any]] = {"quality": 100, "subsampling": 0}
# First row, first column, row step and column step of each pass of an interlaced PNG (ISO/IEC 15948, 8.2).
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_TURN = Image.Transpose
# The inverse of the transform that each orientation asks the viewer to apply.
_UNDO = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_90,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_270,
}

Picture = Image.Image


class OddFiles(NamedTuple):
    """Unusual image files.

    Attributes:
        kinds: the kind of each file of `batch`.
        batch: `encoded` are the original bytes, `images` the pixels that training would have seen.
    """

    kinds: list[str]
    batch: Batch


def make_odd_files(source: ImageSource, geometry: Geometry) -> OddFiles:
    """Make `NUM_SAMPLES` files of each kind from images spread over `source`; deterministic.

    Raises:
        DataError: an image of the source cannot be read.
    """
    indices = spread_indices(source.num_images, NUM_SAMPLES)
    encoded, class_ids = source.read(indices)
    pictures = [Image.fromarray(_see(content, max_side_px=_MAX_SIDE_PX)) for content in encoded]
    kinds, files, labels = [], [], []
    for kind, write in _kinds():
        for picture, class_id in zip(pictures, class_ids, strict=True):
            kinds.append(kind)
            files.append(write(picture))
            labels.append(class_id)
    images = [resize_image(tf.constant(_see(content)), geometry).numpy() for content in files]
    return OddFiles(kinds, Batch(files, np.stack(images), np.stack(labels)))


def _see(content: bytes, max_side_px: int | None = None) -> npt.NDArray[np.uint8]:
    with open_picture(content, max_side_px=max_side_px) as picture:
        if isinstance(picture, UnreadableImage):
            raise DataError(f"an image of the split is {picture.reason}; prepare the dataset again")
        return picture.pixels


def _kinds() -> Iterator[tuple[str, Callable[[Picture], bytes]]]:
    yield "PNG with the picture in its alpha channel alone", _png_of_alpha
    yield "PNG with colours under transparency", lambda picture: _encode(_see_through(picture), "PNG")
    yield "PNG of a palette with transparent colours", _palette_with_alpha
    yield "PNG of 16 bits", _sixteen_bits
    yield "PNG that is interlaced", _interlaced
    yield "PNG that is animated", functools.partial(_animated, container="PNG")
    yield "PNG of orientation 6", functools.partial(_turned, orientation=6, container="PNG")
    for orientation in _UNDO:
        turned = functools.partial(_turned, orientation=orientation, container="JPEG", **_FINE_JPEG)
        yield f"JPEG of orientation {orientation}", turned
    yield "JPEG of CMYK", lambda picture: _encode(picture.convert("CMYK"), "JPEG", **_FINE_JPEG)
    yield "GIF that is animated", functools.partial(_animated, container="GIF")
    yield "GIF with a transparent colour", lambda picture: _encode(picture.quantize(32), "GIF", transparency=0)
    yield "WebP that is transparent", lambda picture: _encode(_see_through(picture), "WEBP", lossless=True, exact=True)
    yield "WebP that is animated", functools.partial(_animated, container="WEBP", lossless=True)
    yield "BMP of a palette", lambda picture: _encode(picture.quantize(64), "BMP")
    yield "TIFF", lambda picture: _encode(picture, "TIFF")


def _encode(picture: Picture, container: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, container, **options)
    return buffer.getvalue()


def _turned(picture: Picture, orientation: int, container: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    return _encode(picture.transpose(_UNDO[orientation]), container, exif=exif, **options)


def _animated(picture: Picture, container: str, **options: Any) -> bytes:
    others = [ImageOps.invert(picture)]
    return _encode(picture, container, save_all=True, append_images=others, duration=100, **options)


def _png_of_alpha(picture: Picture) -> bytes:
    """Encode the picture as the alpha channel of black: a decoder that drops alpha sees only black."""
    shape = Image.new("LA", picture.size)
    shape.putalpha(ImageOps.invert(picture.convert("L")))
    return _encode(shape, "PNG")


def _see_through(picture: Picture) -> Picture:
    rgba = picture.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(picture.size))
    return rgba


def _palette_with_alpha(picture: Picture) -> bytes:
    return _encode(picture.quantize(32), "PNG", transparency=bytes(range(0, 256, 8)))


def _sixteen_bits(picture: Picture) -> bytes:
    return _encode(Image.fromarray(np.asarray(picture.convert("L")) * np.uint16(257)), "PNG")


def _interlaced(picture: Picture) -> bytes:
    """Encode an interlaced PNG, which Pillow cannot write."""
    pixels = np.asarray(picture)
    height, width, _ = pixels.shape
    passes = (pixels[row::rows, column::columns] for row, column, rows, columns in _ADAM7)
    # Every row starts with its filter type, here 0 for none; a pass without pixels has no rows.
    data = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    chunks = _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", zlib.compress(data)) + _png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
