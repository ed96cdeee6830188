"""Whether training can read an image, and the bytes that make it read right.

The training decoder (`preprocess.decode_image`, TensorFlow) and people's viewers do not agree on every file:
TensorFlow ignores the EXIF orientation, reads a palette BMP as grey, drops an alpha channel whatever colour lies
under it, and does not know TIFF. Here each image is decoded in full by the training decoder, and by Pillow as well
unless its header proves that there is one reading of it (`image_header`: plain PNG and JPEG). Where both give the
same upright, opaque picture the bytes are kept as they are. Where they do not, the picture is re-encoded: as JPEG
(quality 95) from a JPEG, as PNG, which loses nothing more, from anything else. What remains unreadable is named with
a reason. Training can therefore not die of a decoding error. (A JPEG has no checksums: damage inside its compressed
data is found where a decoder refuses it.)

Rules: the format is read from the content, never from the file name; real transparency is put on white; of
an animation the first frame counts; of 16-bit values those 8 bits count that are uppermost in use (`deep_samples`);
ICC profiles are ignored by both decoders and so here. Sizes are read from the header and bounded before anything is
decoded, and all threads together decode no more at a time than one image of the largest size.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from trainer.data.preparation import picture as pictures
from trainer.data.preparation.deep_samples import FULL_BITS, DeepSamples, read_deep_samples
from trainer.data.preparation.file_kinds import find_kind
from trainer.data.preparation.image_header import PlainImage, can_hold_jpeg, find_plain_image, gif_frame_pixels
from trainer.data.preparation.pixel_budget import PixelBudget
from trainer.data.preparation.training_decoder import BATCH_SIZE, decode_as_training, shapes_as_training

# TensorFlow's JPEG decoder refuses pictures of 2**29 bytes and more (tensorflow/core/lib/jpeg/jpeg_mem.cc), and
# Pillow's guard against decompression bombs strikes at the same figure.
MAX_IMAGE_PIXELS = 2**29 // 3
# A GIF with more in all its frames is stored as its first one alone: to read that, training would unpack them all.
MAX_GIF_PIXELS = 2**25
# One call of the decoder takes many small images; those in it are decoded before the first is let go.
_MAX_BATCH_PIXELS = 2**22
SMALLER = "made smaller"
NOT_AN_IMAGE = "not an image"

_STORED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp"}
# Known by unmistakable first bytes and decoded by Pillow alone. EPS is left out: Pillow would start Ghostscript.
_CONVERTED_FORMATS = ("DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# Pillow opens an MPO (several JPEGs in one file, as some cameras write) as a JPEG, and then renames it.
_OPENED_FORMATS = [name for name in (*_STORED_FORMATS, *_CONVERTED_FORMATS) if name != "MPO"]
_LOSSY = ("jpeg", "webp")
# Decoders differ by a few grey levels in rounding and chroma upsampling; swapped or inverted colours by far more.
_LOSSY_TOLERANCE = 16.0

_pixels_in_flight = PixelBudget(MAX_IMAGE_PIXELS)

# Image.open with a list of formats finds only those whose plugin is loaded.
Image.init()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadableImage:
    """What is stored: `format` as in `records`, sizes in pixels, `change` the kind of re-encoding or None.

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
    followed by a colon and details."""

    reason: str


CheckedImage = ReadableImage | UnreadableImage


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
        with _pixels_in_flight.hold(sum(plain[position].height * plain[position].width for position in batch)):
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
    if not encoded:
        return UnreadableImage("empty")
    with contextlib.ExitStack() as held:
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
                held.enter_context(_pixels_in_flight.hold(width * height))
                deep = read_deep_samples(encoded, image)
                change, picture = _read(encoded, image, deep, max_side_px, sample_bits)
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
        checked = _as_training_reads(encoded, container, change, picture)
        is_open = deep is not None and (deep.declared_bits is None or deep.is_scaled_up)
        if deep is None or not is_open or isinstance(checked, UnreadableImage):
            return checked
        return dataclasses.replace(checked, highest_sample=deep.highest)


def _read(
    encoded: bytes, image: Image.Image, deep: DeepSamples | None, max_side_px: int | None, sample_bits: int | None
) -> tuple[str | None, npt.NDArray[np.uint8]]:
    """The kind of change that is known to be needed, and the picture."""
    bits = FULL_BITS
    if deep is not None:
        bits = deep.declared_bits or sample_bits or FULL_BITS
        image = deep.to_image(bits)
    size = None if max_side_px is None else pictures.load_scaled(image, max_side_px)
    if size is not None:
        return SMALLER, pictures.resize(pictures.to_upright_rgb(image), size)
    image.load()
    change = _needed_change(encoded, image)
    if deep is not None and bits < FULL_BITS:
        change = f"{bits} bits of 16 used" + (", higher values cut off" if deep.highest >= 2**bits else "")
    return change, pictures.to_upright_rgb(image)


def _too_large(found: str) -> str:
    return f"too large: {found}, over the limit of {MAX_IMAGE_PIXELS:,} pixels"


def _as_training_reads(
    encoded: bytes, container: str, change: str | None, picture: npt.NDArray[np.uint8]
) -> CheckedImage:
    """Keeps the bytes, or re-encodes `picture` where there is a `change` or the training decoder wants one."""
    format_name = _STORED_FORMATS.get(container, "png")
    if change is None:
        decoded = decode_as_training(encoded, format_name)
        if decoded is None and format_name in ("jpeg", "png"):
            # Every sound one is read by TensorFlow; Pillow alone forgives, for example, a PNG without its end.
            return UnreadableImage("corrupt: Pillow reads it, TensorFlow refuses it")
        if decoded is None:
            change = f"{container} that TensorFlow does not read"
        elif not _is_same_picture(decoded, picture, _LOSSY_TOLERANCE if format_name in _LOSSY else 0.0):
            if format_name == "jpeg":
                # Sound ones look the same in both; damaged data is concealed by each decoder in its own way.
                return UnreadableImage("corrupt: Pillow and TensorFlow make different pictures of it")
            change = f"{container} that TensorFlow reads otherwise"
    if change is not None:
        format_name = "jpeg" if format_name == "jpeg" else "png"
        encoded = pictures.encode(picture, format_name)
        if decode_as_training(encoded, format_name) is None:  # such as a side of over a million pixels
            height, width, _ = picture.shape
            return UnreadableImage(f"unsupported: TensorFlow refuses {width} x {height} pixels as {format_name}")
    height, width, _ = picture.shape
    return ReadableImage(encoded=encoded, format=format_name, height=height, width=width, change=change)


def _needed_change(encoded: bytes, image: Image.Image) -> str | None:
    """What the training decoder is known to get wrong; what else it gets wrong shows in the comparison."""
    container = image.format or ""
    if pictures.is_rotated(image):
        return "rotated upright"
    if image.mode == "CMYK":
        return "CMYK to RGB"
    if pictures.is_transparent(image):
        return "transparency put on white"
    if container not in _STORED_FORMATS:
        return f"converted from {container}"
    if container == "WEBP" and getattr(image, "n_frames", 1) > 1:
        return "first frame of an animated WebP"  # the kernel must not see it, see preprocess.decode_image
    if container == "GIF":
        limit = max(MAX_GIF_PIXELS, image.width * image.height)
        if gif_frame_pixels(encoded, enough=limit + 1) > limit:
            return "first frame of a long GIF"
    return None


def _is_same_picture(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], tolerance: float) -> bool:
    """Whether the mean absolute difference is at most `tolerance` grey levels."""
    if a.shape != b.shape:
        return False
    if tolerance == 0.0:
        return np.array_equal(a, b)
    # Every fourth row and column shows a difference of that size as well as all of them.
    return bool(np.abs(a[::4, ::4].astype(np.int16) - b[::4, ::4]).mean() <= tolerance)
