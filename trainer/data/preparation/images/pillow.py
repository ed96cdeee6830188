"""An image file as people see it, by Pillow: upright, opaque, RGB; and back to bytes."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

_JPEG_QUALITY = 95
_TILE_WIDTH, _TILE_LENGTH = 322, 323


class UnsupportedPixelsError(Exception):
    """Pixels that have no agreed reading as 8-bit RGB."""


def decoded_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of what an opened image takes to decode: its own, or those of a TIFF's tile that is larger."""
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    if isinstance(tile[0], int) and isinstance(tile[1], int) and tile[0] * tile[1] > image.width * image.height:
        return tile[0], tile[1]
    return image.size


def load_scaled(image: Image.Image, max_side_px: int) -> tuple[int, int] | None:
    """Loads an opened image, with no more pixels than are needed for a longer side of `max_side_px`.

    Returns the upright width and height that it is to have, or None where it is small enough.
    """
    longer = max(image.size)
    if longer <= max_side_px:
        return None
    width, height = (max(1, round(side * max_side_px / longer)) for side in image.size)
    # A JPEG can be decoded at a half, a quarter or an eighth; twice the target leaves the filter enough.
    image.draft(image.mode, (2 * width, 2 * height))
    image.load()
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
    return (height, width) if is_turned else (width, height)


def resize(picture: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """[height, width, 3] to `size` (width, height), antialiased."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def is_rotated(image: Image.Image) -> bool:
    """Whether the EXIF (or XMP) of an opened image asks the viewer to turn or mirror it."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def is_transparent(image: Image.Image) -> bool:
    """Whether a loaded image has a pixel that is not opaque."""
    if not image.has_transparency_data or image.mode.startswith("I"):
        return False
    lowest: Any = image.convert("RGBA").getchannel("A").getextrema()[0]
    return bool(lowest < 255)


def to_upright_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The picture of an opened image, [height, width, 3], with real transparency put on white.

    One of 16 bits a sample is made into one of 8 before, see `deep_samples`.

    Raises UnsupportedPixelsError for pixels whose range is not known.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        raise UnsupportedPixelsError(f"pixels of Pillow's mode {image.mode}, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def encode(picture: npt.NDArray[np.uint8], format_name: str) -> bytes:
    """Encodes [height, width, 3] as "jpeg" (quality 95) or "png"; the same bytes with the same version of Pillow."""
    # A fresh image carries no EXIF, ICC profile or transparency entry over into the new file.
    buffer = io.BytesIO()
    if format_name == "jpeg":
        Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
