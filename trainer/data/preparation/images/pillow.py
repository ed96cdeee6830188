"""Convert images to upright, opaque RGB with Pillow, and back to bytes."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

_JPEG_QUALITY = 95
_TILE_WIDTH, _TILE_LENGTH = 322, 323


class UnsupportedPixelsError(Exception):
    """Raised for pixels without a defined conversion to 8-bit RGB."""


def decoded_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height that decoding an opened image takes: its own, or those of a larger TIFF tile."""
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH), tags.get(_TILE_LENGTH)
    if isinstance(tile[0], int) and isinstance(tile[1], int) and tile[0] * tile[1] > image.width * image.height:
        return tile[0], tile[1]
    return image.size


def load_scaled(image: Image.Image, max_side_px: int) -> tuple[int, int] | None:
    """Load an opened image with no more pixels than a longer side of `max_side_px` needs.

    Returns:
        The target width and height after applying the orientation, or None, without loading, if it is small enough.
    """
    longer = max(image.size)
    if longer <= max_side_px:
        return None
    width, height = (max(1, round(side * max_side_px / longer)) for side in image.size)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; twice the target is enough for the filter.
    image.draft(image.mode, (2 * width, 2 * height))
    image.load()
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
    return (height, width) if is_turned else (width, height)


def resize(picture: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize [height, width, 3] to `size` (width, height) with antialiasing."""
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def is_rotated(image: Image.Image) -> bool:
    """Return whether the EXIF (or XMP) orientation of an opened image rotates or mirrors it."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def is_transparent(image: Image.Image) -> bool:
    """Return whether a loaded image has a pixel that is not opaque."""
    if not image.has_transparency_data or image.mode.startswith("I"):
        return False
    lowest: Any = image.convert("RGBA").getchannel("A").getextrema()[0]
    return bool(lowest < 255)


def to_upright_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert an opened image to [height, width, 3], upright, with transparency composited on white.

    16-bit images are converted to 8 bits before, see `deep_samples`.

    Raises:
        UnsupportedPixelsError: the range of the pixels is not known.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        raise UnsupportedPixelsError(f"pixels of Pillow mode {image.mode}, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def encode(picture: npt.NDArray[np.uint8], format_name: str) -> bytes:
    """Encode [height, width, 3] as "jpeg" (quality 95) or "png", deterministically for one version of Pillow."""
    # A new image has no EXIF, ICC profile or transparency entry to carry over.
    buffer = io.BytesIO()
    if format_name == "jpeg":
        Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
