"""Check that training decodes an image correctly, and re-encode it if not.

`image_file` (Pillow) defines what a file shows. Each image is fully decoded by the training decoder
(`preprocess.decode_image`, TensorFlow), and by `image_file` too unless its header proves that decoders agree
(`image_header`: plain PNG and JPEG). If both give the same upright, opaque image, the bytes are kept. Otherwise the
image is re-encoded: a JPEG as JPEG (quality 95), anything else losslessly as PNG. An unreadable file is recorded with a
reason. So no decoding error can stop a training run. (A JPEG has no checksums: damage inside its compressed data is
found only if a decoder refuses it.)
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.decode.image_file import (
    NOT_AN_IMAGE,
    SMALLER,
    CheckedImage,
    FilePicture,
    ReadableImage,
    UnreadableImage,
    open_picture,
    pixels_in_flight,
)
from trainer.data.decode.limits import MAX_GIF_PIXELS, MAX_IMAGE_PIXELS
from trainer.data.preparation.images.image_header import PlainImage, find_plain_image
from trainer.data.preparation.images.training_decoder import BATCH_SIZE, decode_as_training, shapes_as_training

__all__ = [
    "MAX_GIF_PIXELS",
    "MAX_IMAGE_PIXELS",
    "NOT_AN_IMAGE",
    "SMALLER",
    "CheckedImage",
    "ReadableImage",
    "UnreadableImage",
    "check_image",
    "check_images",
    "compare_decoders",
]

# Limit for the images decoded in one call, which are all in memory at the same time.
_MAX_BATCH_PIXELS = 2**22
_LOSSY = ("jpeg", "webp")
# Decoders differ by a few grey levels in rounding and chroma upsampling; swapped or inverted colours by far more.
_LOSSY_TOLERANCE = 16.0


def check_image(encoded: bytes, *, max_side_px: int | None = None, sample_bits: int | None = None) -> CheckedImage:
    """Check one image with `check_images`."""
    return check_images([encoded], max_side_px=max_side_px, sample_bits=sample_bits)[0]


def check_images(
    encoded: Sequence[bytes], *, max_side_px: int | None = None, sample_bits: int | None = None
) -> list[CheckedImage]:
    """Decode image files fully, by the rules of this module. Thread-safe.

    Args:
        encoded: the bytes of each file.
        max_side_px: an image with a longer side is made smaller; None for no limit.
        sample_bits: how many bits of 16 are used in files that do not say so; None for all.
    """
    plain: dict[int, PlainImage] = {}
    for position, content in enumerate(encoded):
        image = find_plain_image(content)
        if image is not None and (max_side_px is None or max(image.height, image.width) <= max_side_px):
            plain[position] = image
    checked: dict[int, CheckedImage] = {}
    for batch in _batches(plain):
        with pixels_in_flight.hold(sum(plain[position].height * plain[position].width for position in batch)):
            shapes = shapes_as_training([encoded[position] for position in batch])
        for position, shape in zip(batch, shapes, strict=True):
            image = plain[position]
            if shape == (image.height, image.width, 3):
                checked[position] = ReadableImage(
                    encoded=encoded[position], format=image.format, height=image.height, width=image.width, change=None
                )
    return [
        checked[position]
        if position in checked
        else compare_decoders(content, max_side_px=max_side_px, sample_bits=sample_bits)
        for position, content in enumerate(encoded)
    ]


def _batches(plain: Mapping[int, PlainImage]) -> Iterator[list[int]]:
    """Divide the keys of `plain` into batches that may be decoded together, without images that are too large."""
    batch: list[int] = []
    num_pixels = 0
    for position, image in plain.items():
        size = image.height * image.width
        if size > MAX_IMAGE_PIXELS:
            continue
        if batch and (len(batch) == BATCH_SIZE or num_pixels + size > _MAX_BATCH_PIXELS):
            yield batch
            batch, num_pixels = [], 0
        batch.append(position)
        num_pixels += size
    if batch:
        yield batch


def compare_decoders(encoded: bytes, *, max_side_px: int | None = None, sample_bits: int | None = None) -> CheckedImage:
    """Check an image with both decoders, whatever its header says."""
    with open_picture(encoded, max_side_px=max_side_px, sample_bits=sample_bits) as picture:
        if isinstance(picture, UnreadableImage):
            return picture
        checked = _as_training_reads(encoded, picture)
        if isinstance(checked, UnreadableImage) or picture.highest_sample is None:
            return checked
        return dataclasses.replace(checked, highest_sample=picture.highest_sample)


def _as_training_reads(encoded: bytes, picture: FilePicture) -> CheckedImage:
    """Keep the bytes, or re-encode the image if there is a `change` or the training decoder differs."""
    height, width, _ = picture.pixels.shape
    change = picture.change or _find_difference(encoded, picture)
    if isinstance(change, UnreadableImage):
        return change
    if change is None:
        return ReadableImage(encoded=encoded, format=picture.format, height=height, width=width, change=None)
    image = picture.reencode(change)
    if decode_as_training(image.encoded, image.format) is None:  # for example with a side of over a million pixels
        return UnreadableImage(f"unsupported: TensorFlow refuses {width} x {height} pixels as {image.format}")
    return image


def _find_difference(encoded: bytes, picture: FilePicture) -> str | UnreadableImage | None:
    """Return how the training decoder differs from `picture`, or None."""
    decoded = decode_as_training(encoded, picture.format)
    if decoded is None and picture.format in ("jpeg", "png"):
        # TensorFlow reads every valid one; only Pillow tolerates, for example, a PNG without its end.
        return UnreadableImage("corrupt: Pillow reads it, TensorFlow refuses it")
    if decoded is None:
        return f"{picture.container} that TensorFlow does not read"
    if _is_same_picture(decoded, picture.pixels, _LOSSY_TOLERANCE if picture.format in _LOSSY else 0.0):
        return None
    if picture.format == "jpeg":
        # Valid ones look the same in both; decoders conceal damaged data differently.
        return UnreadableImage("corrupt: Pillow and TensorFlow make different pictures of it")
    return f"{picture.container} that TensorFlow reads otherwise"


def _is_same_picture(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], tolerance: float) -> bool:
    """Return whether the mean absolute difference is at most `tolerance` grey levels."""
    if a.shape != b.shape:
        return False
    if tolerance == 0.0:
        return np.array_equal(a, b)
    # Every fourth row and column is enough to show a difference of that size.
    return bool(np.abs(a[::4, ::4].astype(np.int16) - b[::4, ::4]).mean() <= tolerance)
