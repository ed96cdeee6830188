"""Decode image files with Pillow, the one definition of what an image file shows.

TensorFlow and image viewers disagree on some files: TensorFlow ignores the EXIF orientation, reads a palette BMP as
grey, drops an alpha channel whatever the colour under it, and does not read TIFF. So every file for a model is decoded
here: by `prepare` (`image_check`, which also compares TensorFlow's result), by `predict`, by clients and by the export
gate. The serving graph, which has no Pillow, decodes what it can in the same way and refuses the rest with a status
(`export.convert.graph_reading`).

Rules: the format is read from the content, never from the file name; EXIF (or XMP) orientation is applied; transparency
is composited on white; the first frame of an animation is taken; CMYK is converted to RGB; 16-bit values are reduced to
the upper 8 of the bits in use (`deep_samples`); ICC profiles are ignored. Sizes are read from the header and bounded
before decoding, and all threads together decode at most as many pixels at a time as one image of the largest size has.

Needs no TensorFlow.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from trainer.data.decode.limits import MAX_GIF_PIXELS, MAX_IMAGE_PIXELS
from trainer.data.preparation.deep_samples import FULL_BITS, read_deep_samples
from trainer.data.preparation.file_kinds import find_kind
from trainer.data.preparation.images import pillow as pictures
from trainer.data.preparation.images.image_header import can_hold_jpeg, find_plain_image, gif_frame_pixels
from trainer.data.preparation.images.pixel_budget import PixelBudget

SMALLER = "made smaller"
NOT_AN_IMAGE = "not an image"
_END_OF_PNG = b"IEND\xaeB`\x82"

# Formats that TensorFlow reads too, with their names in `records`.
SHARED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp"}
# Formats with unmistakable magic numbers that only Pillow decodes. Not EPS: Pillow would start Ghostscript.
_CONVERTED_FORMATS = ("DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# Pillow opens an MPO (several JPEGs in one file, as some cameras write) as a JPEG, and then renames it.
_OPENED_FORMATS = [name for name in (*SHARED_FORMATS, *_CONVERTED_FORMATS) if name != "MPO"]

pixels_in_flight = PixelBudget(MAX_IMAGE_PIXELS)

# Image.open with a list of formats finds only formats whose plugin is loaded.
Image.init()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadableImage:
    """An image whose bytes TensorFlow and viewers decode alike.

    format: as in `records`.
    height, width: in pixels.
    change: why the image was re-encoded, or None if it was not.
    highest_sample: for a 16-bit image whose file does not say how many bits are used.
    """

    encoded: bytes
    format: str
    height: int
    width: int
    change: str | None
    highest_sample: int | None = None


@dataclasses.dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be used.

    reason: a kind (`empty`, `not an image`, `truncated`, `corrupt`, `too large`, `unsupported`), mostly followed by a
        colon and details; worded to follow "the image is".
    """

    reason: str


CheckedImage = ReadableImage | UnreadableImage


@dataclasses.dataclass(frozen=True)
class FilePicture:
    """The decoded content of an image file.

    container: Pillow's name of the format.
    pixels: [height, width, 3].
    change: why the bytes must be re-encoded, as far as known without TensorFlow; None if they need not.
    highest_sample: as in `ReadableImage`.
    """

    container: str
    pixels: npt.NDArray[np.uint8]
    change: str | None
    highest_sample: int | None = None

    @property
    def format(self) -> str:
        """The format of the bytes, as in `records`."""
        return SHARED_FORMATS.get(self.container, "png")

    def reencode(self, change: str) -> ReadableImage:
        """Re-encode a JPEG as JPEG (quality 95), anything else losslessly as PNG."""
        format_name = "jpeg" if self.format == "jpeg" else "png"
        height, width, _ = self.pixels.shape
        return ReadableImage(
            encoded=pictures.encode(self.pixels, format_name),
            format=format_name,
            height=height,
            width=width,
            change=change,
            highest_sample=self.highest_sample,
        )


@contextlib.contextmanager
def open_picture(
    encoded: bytes, *, max_side_px: int | None = None, sample_bits: int | None = None
) -> Iterator[FilePicture | UnreadableImage]:
    """Decode an image file; its pixels count towards `pixels_in_flight` within the block. Thread-safe.

    Args:
        encoded: the bytes of the file.
        max_side_px: an image with a longer side is made smaller; None for no limit.
        sample_bits: how many bits of 16 are used in files that do not say so; None for all.
    """
    with contextlib.ExitStack() as held:
        yield _read_file(encoded, max_side_px, sample_bits, held)


def make_plain(encoded: bytes, *, sample_bits: int | None = None) -> CheckedImage:
    """Return what a client sends for an image file: its bytes, re-encoded if decoders might differ on them.

    Args:
        encoded: the bytes of the file.
        sample_bits: as for `open_picture`; the value of the dataset that the model was trained on.
    """
    plain = find_plain_image(encoded)
    if plain is not None and plain.height * plain.width <= MAX_IMAGE_PIXELS:
        return ReadableImage(encoded=encoded, format=plain.format, height=plain.height, width=plain.width, change=None)
    with open_picture(encoded, sample_bits=sample_bits) as picture:
        if isinstance(picture, UnreadableImage):
            return picture
        if picture.change is None and picture.format == "jpeg":
            height, width, _ = picture.pixels.shape
            return ReadableImage(encoded=encoded, format="jpeg", height=height, width=width, change=None)
        if picture.container == "PNG" and _END_OF_PNG not in encoded:
            return UnreadableImage("truncated: the PNG has no end")  # TensorFlow and `prepare` refuse it too
        return picture.reencode(picture.change or f"plain PNG from {picture.container}")


def _read_file(
    encoded: bytes, max_side_px: int | None, sample_bits: int | None, held: contextlib.ExitStack
) -> FilePicture | UnreadableImage:
    if not encoded:
        return UnreadableImage("empty")
    # Any exception of Pillow on hostile bytes (OSError, SyntaxError, ValueError, struct.error...) becomes the reason
    # that is recorded for the file.
    try:
        with Image.open(io.BytesIO(encoded), formats=_OPENED_FORMATS) as image:
            container = image.format or ""
            width, height = pictures.decoded_size(image)
            if width * height > MAX_IMAGE_PIXELS:
                return UnreadableImage(_too_large(f"{width} x {height} pixels"))
            if container in ("JPEG", "MPO") and not can_hold_jpeg(len(encoded), height, width):
                return UnreadableImage(f"truncated: {len(encoded)} bytes cannot hold {width} x {height} pixels")
            held.enter_context(pixels_in_flight.hold(width * height))
            return _read_image(encoded, image, max_side_px, sample_bits)
    except pictures.UnsupportedPixelsError as e:
        return UnreadableImage(f"unsupported: {e}")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        return UnreadableImage(_too_large(str(e)))
    except UnidentifiedImageError:
        is_webp = encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP"
        if is_webp or encoded.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8")):
            return UnreadableImage("corrupt: its header is broken")
        kind = find_kind(encoded)
        return UnreadableImage(NOT_AN_IMAGE if kind is None else f"{NOT_AN_IMAGE}: {kind}")
    except Exception as e:
        problem = "truncated" if "truncated" in str(e).lower() else "corrupt"
        return UnreadableImage(f"{problem}: {' '.join(str(e).split()) or type(e).__name__}")


def _read_image(encoded: bytes, image: Image.Image, max_side_px: int | None, sample_bits: int | None) -> FilePicture:
    container = image.format or ""
    bits = FULL_BITS
    deep = read_deep_samples(encoded, image)
    highest = None
    if deep is not None:
        bits = deep.declared_bits or sample_bits or FULL_BITS
        image = deep.to_image(bits)
        is_open = deep.declared_bits is None or deep.is_scaled_up
        highest = deep.highest if is_open else None
    size = None if max_side_px is None else pictures.load_scaled(image, max_side_px)
    if size is not None:
        return FilePicture(container, pictures.resize(pictures.to_upright_rgb(image), size), SMALLER, highest)
    image.load()
    change = _needed_change(encoded, image)
    if deep is not None and bits < FULL_BITS:
        change = f"{bits} bits of 16 used" + (", higher values cut off" if deep.highest >= 2**bits else "")
    return FilePicture(container, pictures.to_upright_rgb(image), change, highest)


def _too_large(found: str) -> str:
    return f"too large: {found}, over the limit of {MAX_IMAGE_PIXELS:,} pixels"


def _needed_change(encoded: bytes, image: Image.Image) -> str | None:
    """Return what TensorFlow is known to decode wrong, or None; `image_check` finds other differences by comparison."""
    container = image.format or ""
    if pictures.is_rotated(image):
        return "rotated upright"
    if image.mode == "CMYK":
        return "CMYK to RGB"
    if pictures.is_transparent(image):
        return "transparency put on white"
    if container not in SHARED_FORMATS:
        return f"converted from {container}"
    if container == "WEBP" and getattr(image, "n_frames", 1) > 1:
        return "first frame of an animated WebP"  # unsafe for TensorFlow, see preprocess.decode_webp
    if container == "GIF":
        limit = max(MAX_GIF_PIXELS, image.width * image.height)
        if gif_frame_pixels(encoded, enough=limit + 1) > limit:
            return "first frame of a long GIF"
    return None
