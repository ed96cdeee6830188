"""What every client does to an image file before it sends it: nothing, but for turning a rotated one upright.

TensorFlow ignores the EXIF orientation, so the contract (see `signature`) asks clients to. Who calls a TFLite or ONNX
file also decodes and resizes; how that is done without TensorFlow is here, and in the README of every export.
"""

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.data.geometry import Geometry
from trainer.errors import UsageError

# What `preprocess.decode_image` reads.
_READABLE = {"JPEG", "PNG", "GIF", "BMP", "WEBP"}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientImage:
    """An image file as a client sends it: `content`, or `error`, why it cannot be sent."""

    path: pathlib.Path
    content: bytes = b""
    error: str | None = None


def read_client_images(paths: Sequence[pathlib.Path]) -> list[ClientImage]:
    """Reads image files, in order. One that is no image, is broken or is in a format that the model does not read is an
    error of that image alone.

    Raises:
        UsageError: a file cannot be read.
    """
    return [_read(path) for path in paths]


def load_client_pixels(encoded: Sequence[bytes], geometry: Geometry) -> npt.NDArray[np.uint8]:
    """[n, size, size, 3], RGB, by Pillow: the resize of the training but for rounding."""
    return np.stack([_load_pixels(content, geometry) for content in encoded])


def _load_pixels(content: bytes, geometry: Geometry) -> npt.NDArray[np.uint8]:
    size = geometry.image_size_px
    with Image.open(io.BytesIO(content)) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    if geometry.resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _read(path: pathlib.Path) -> ClientImage:
    try:
        return ClientImage(path=path, content=_upright(_read_file(path)))
    except _NotSentError as e:
        return ClientImage(path=path, error=str(e))


class _NotSentError(Exception):
    """Why an image is not sent."""


def _read_file(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UsageError(f"the image {path} cannot be read: {e.strerror}") from None


def _upright(content: bytes) -> bytes:
    """The bytes as they are, or as an upright PNG (which loses nothing) where EXIF says rotated."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format not in _READABLE:
                raise _NotSentError(f"is {image.format}; the model reads JPEG, PNG, GIF, BMP and WebP: convert it")
            if image.getexif().get(_ORIENTATION_TAG, _UPRIGHT) == _UPRIGHT:
                return content
            upright = io.BytesIO()
            ImageOps.exif_transpose(image).convert("RGB").save(upright, "PNG")
    except UnidentifiedImageError:
        raise _NotSentError("is not an image; give JPEG, PNG, GIF, BMP or WebP files") from None
    # Pillow's decoders raise all of these for broken files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        raise _NotSentError(f"is a broken image: {e}") from None
    return upright.getvalue()
