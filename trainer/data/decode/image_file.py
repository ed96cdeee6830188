"""The one reading of an image file, by Pillow: from its bytes, as people have it, to the picture that a model is given.

TensorFlow and people's viewers do not agree on every file: TensorFlow ignores the EXIF orientation, reads a palette
BMP as grey, drops an alpha channel whatever colour lies under it, and does not know TIFF. So everything that gives a
file to a model goes through here: `prepare` (`image_check`, which compares TensorFlow's reading as well), every
`predict`, every client, and the gate. The serving graph, which has no Pillow, reads what it can in the same way and
refuses the rest by a status (`export.convert.graph_reading`).

Rules: the format is read from the content, never from the file name; EXIF (or XMP) orientation is applied; real
transparency is put on white; of an animation the first frame counts; CMYK becomes RGB; of 16-bit values those 8 bits
count that are uppermost in use (`deep_samples`); ICC profiles are ignored. Sizes are read from the header and bounded
before anything is decoded, and all threads together decode no more at a time than one image of the largest size.

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

# Formats that TensorFlow reads as well, under the names of `records`.
SHARED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp"}
# Known by unmistakable first bytes and decoded by Pillow alone. EPS is left out: Pillow would start Ghostscript.
_CONVERTED_FORMATS = ("DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# Pillow opens an MPO (several JPEGs in one file, as some cameras write) as a JPEG, and then renames it.
_OPENED_FORMATS = [name for name in (*SHARED_FORMATS, *_CONVERTED_FORMATS) if name != "MPO"]

pixels_in_flight = PixelBudget(MAX_IMAGE_PIXELS)

# Image.open with a list of formats finds only those whose plugin is loaded.
Image.init()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadableImage:
    """Bytes that TensorFlow and viewers read alike: `format` as in `records`, sizes in pixels, `change` the kind of
    re-encoding or None.

    highest_sample: of a picture of 16 bits whose file leaves open how many are used.
    """

    encoded: bytes
    format: str
    height: int
    width: int
    change: str | None
    highest_sample: int | None = None


@dataclasses.dataclass(frozen=True)
class UnreadableImage:
    """`reason` is a kind (`empty`, `not an image`, `truncated`, `corrupt`, `too large`, `unsupported`), mostly
    followed by a colon and details; after "is" it ends a sentence about the image."""

    reason: str


CheckedImage = ReadableImage | UnreadableImage


@dataclasses.dataclass(frozen=True)
class FilePicture:
    """What a file shows: `pixels` [height, width, 3], of a `container` by Pillow's name.

    change: why its bytes must be re-encoded, as far as that is known without asking TensorFlow. highest_sample: as in
        `ReadableImage`.
    """

    container: str
    pixels: npt.NDArray[np.uint8]
    change: str | None
    highest_sample: int | None = None

    @property
    def format(self) -> str:
        """The name in `records` of what its bytes are."""
        return SHARED_FORMATS.get(self.container, "png")

    def reencode(self, change: str) -> ReadableImage:
        """As JPEG (quality 95) from a JPEG, as PNG, which loses nothing more, from anything else."""
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
    """Yields what a file shows; its pixels count towards `pixels_in_flight` inside. Safe to use in threads.

    A picture that is longer or wider than `max_side_px` is made smaller. `sample_bits` of 16 are in use where a file
    does not say how many; None for all.
    """
    with contextlib.ExitStack() as held:
        yield _read_file(encoded, max_side_px, sample_bits, held)


def make_plain(encoded: bytes, *, sample_bits: int | None = None) -> CheckedImage:
    """What a client sends for an image file: the bytes as they are, or re-encoded where their reading might differ.

    sample_bits: as for `open_picture`, and that of the dataset that the model was trained on.
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
            return UnreadableImage("truncated: the PNG has no end")  # TensorFlow refuses it, and so does `prepare`
        return picture.reencode(picture.change or f"plain PNG from {picture.container}")


def _read_file(
    encoded: bytes, max_side_px: int | None, sample_bits: int | None, held: contextlib.ExitStack
) -> FilePicture | UnreadableImage:
    if not encoded:
        return UnreadableImage("empty")
    # Whatever Pillow raises on hostile bytes (OSError, SyntaxError, ValueError, struct.error...) is a finding
    # about the file, and becomes its recorded reason.
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
    """What TensorFlow is known to get wrong; what else it gets wrong shows where `image_check` compares."""
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
        return "first frame of an animated WebP"  # the kernel must not see it, see preprocess.decode_image
    if container == "GIF":
        limit = max(MAX_GIF_PIXELS, image.width * image.height)
        if gif_frame_pixels(encoded, enough=limit + 1) > limit:
            return "first frame of a long GIF"
    return None
