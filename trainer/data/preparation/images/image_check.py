"""Whether training can read an image, and the bytes that make it read right.

What a file shows is decided by `image_file`, by Pillow. Here each image is decoded in full by the training decoder
(`preprocess.decode_image`, TensorFlow), and by `image_file` as well unless its header proves that there is one reading
of it (`image_header`: plain PNG and JPEG). Where both give the same upright, opaque picture the bytes are kept as they
are. Where they do not, the picture is re-encoded: as JPEG (quality 95) from a JPEG, as PNG, which loses nothing more,
from anything else. What remains unreadable is named with a reason. Training can therefore not die of a decoding error.
(A JPEG has no checksums: damage inside its compressed data is found where a decoder refuses it.)
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

# One call of the decoder takes many small images; those in it are decoded before the first is let go.
_MAX_BATCH_PIXELS = 2**22
_LOSSY = ("jpeg", "webp")
# Decoders differ by a few grey levels in rounding and chroma upsampling; swapped or inverted colours by far more.
_LOSSY_TOLERANCE = 16.0


def check_image(encoded: bytes, *, max_side_px: int | None = None, sample_bits: int | None = None) -> CheckedImage:
    """`check_images` of one."""
    return check_images([encoded], max_side_px=max_side_px, sample_bits=sample_bits)[0]


def check_images(
    encoded: Sequence[bytes], *, max_side_px: int | None = None, sample_bits: int | None = None
) -> list[CheckedImage]:
    """Decodes image files in full; see the module for the rules. Safe to call in threads.

    A picture that is longer or wider than `max_side_px` is made smaller. `sample_bits` of 16 are in use where a file
    does not say how many; None for all.
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
    """The keys of `plain`, in parts that may be decoded together; without what is too large."""
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
    """`check_image` by both decoders, whatever the header proves."""
    with open_picture(encoded, max_side_px=max_side_px, sample_bits=sample_bits) as picture:
        if isinstance(picture, UnreadableImage):
            return picture
        checked = _as_training_reads(encoded, picture)
        if isinstance(checked, UnreadableImage) or picture.highest_sample is None:
            return checked
        return dataclasses.replace(checked, highest_sample=picture.highest_sample)


def _as_training_reads(encoded: bytes, picture: FilePicture) -> CheckedImage:
    """Keeps the bytes, or re-encodes the picture where there is a `change` or the training decoder wants one."""
    height, width, _ = picture.pixels.shape
    change = picture.change or _find_difference(encoded, picture)
    if isinstance(change, UnreadableImage):
        return change
    if change is None:
        return ReadableImage(encoded=encoded, format=picture.format, height=height, width=width, change=None)
    image = picture.reencode(change)
    if decode_as_training(image.encoded, image.format) is None:  # such as a side of over a million pixels
        return UnreadableImage(f"unsupported: TensorFlow refuses {width} x {height} pixels as {image.format}")
    return image


def _find_difference(encoded: bytes, picture: FilePicture) -> str | UnreadableImage | None:
    """What the training decoder gets wrong of bytes that nothing is known to be wrong with, or None."""
    decoded = decode_as_training(encoded, picture.format)
    if decoded is None and picture.format in ("jpeg", "png"):
        # Every sound one is read by TensorFlow; Pillow alone forgives, for example, a PNG without its end.
        return UnreadableImage("corrupt: Pillow reads it, TensorFlow refuses it")
    if decoded is None:
        return f"{picture.container} that TensorFlow does not read"
    if _is_same_picture(decoded, picture.pixels, _LOSSY_TOLERANCE if picture.format in _LOSSY else 0.0):
        return None
    if picture.format == "jpeg":
        # Sound ones look the same in both; damaged data is concealed by each decoder in its own way.
        return UnreadableImage("corrupt: Pillow and TensorFlow make different pictures of it")
    return f"{picture.container} that TensorFlow reads otherwise"


def _is_same_picture(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], tolerance: float) -> bool:
    """Whether the mean absolute difference is at most `tolerance` grey levels."""
    if a.shape != b.shape:
        return False
    if tolerance == 0.0:
        return np.array_equal(a, b)
    # Every fourth row and column shows a difference of that size as well as all of them.
    return bool(np.abs(a[::4, ::4].astype(np.int16) - b[::4, ::4]).mean() <= tolerance)
