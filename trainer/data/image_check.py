"""Whether training can read an image, and the bytes that make it read right.

The training decoder (`preprocess.decode_image`, TensorFlow) and people's viewers do not agree on every file:
TensorFlow ignores the EXIF orientation, reads a palette BMP as grey, drops an alpha channel whatever colour lies
under it, and does not know TIFF. Here each image is decoded in full by Pillow *and* by the training decoder.
Where both give the same upright, opaque picture the bytes are kept as they are. Where they do not, the picture is
re-encoded: as JPEG (quality 95) from a JPEG, as PNG, which loses nothing more, from anything else. What remains
unreadable is named with a reason. Training can therefore not die of a decoding error.

Rules: the format is read from the content, never from the file name; real transparency is put on white; of
an animation the first frame counts; 16-bit values keep their upper 8 bits, as in TensorFlow; ICC profiles are
ignored by both decoders and so here.
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# TensorFlow's JPEG decoder refuses pictures of 2**29 bytes and more (tensorflow/core/lib/jpeg/jpeg_mem.cc), and
# Pillow's guard against decompression bombs strikes at the same figure.
MAX_IMAGE_PIXELS = 2**29 // 3

_STORED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp"}
# Known by unmistakable first bytes and decoded by Pillow alone. EPS is left out: Pillow would start Ghostscript.
_CONVERTED_FORMATS = ("DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# Pillow opens an MPO (several JPEGs in one file, as some cameras write) as a JPEG, and then renames it.
_OPENED_FORMATS = [name for name in (*_STORED_FORMATS, *_CONVERTED_FORMATS) if name != "MPO"]
_LOSSY = ("jpeg", "webp")
# Decoders differ by a few grey levels in rounding and chroma upsampling; swapped or inverted colours by far more.
_LOSSY_TOLERANCE = 16.0
_JPEG_QUALITY = 95

# Image.open with a list of formats finds only those whose plugin is loaded.
Image.init()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadableImage:
    """What is stored: `format` as in `records`, sizes in pixels, `change` the kind of re-encoding or None."""

    encoded: bytes
    format: str
    height: int
    width: int
    change: str | None


@dataclasses.dataclass(frozen=True)
class UnreadableImage:
    """`reason` is a kind (`empty`, `not an image`, `truncated`, `corrupt`, `too large`, `unsupported`), mostly
    followed by a colon and details."""

    reason: str


def check_image(encoded: bytes) -> ReadableImage | UnreadableImage:
    """Decodes one image file in full with both decoders; see the module for the rules. Safe to call in threads."""
    if not encoded:
        return UnreadableImage("empty")
    # Whatever Pillow raises on hostile bytes (OSError, SyntaxError, ValueError, struct.error...) is a finding about the
    # file, and becomes its recorded reason.
    try:
        with Image.open(io.BytesIO(encoded), formats=_OPENED_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                return UnreadableImage(_too_large(f"{image.width} x {image.height} pixels"))
            image.load()
            container = image.format or ""
            change = _needed_change(image, container)
            picture = _to_upright_rgb(image)
    except _UnsupportedPixelsError as e:
        return UnreadableImage(f"unsupported: {e}")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        return UnreadableImage(_too_large(str(e)))
    except UnidentifiedImageError:
        broken = encoded.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF"))
        return UnreadableImage("corrupt: its header is broken" if broken else "not an image")
    except Exception as e:
        kind = "truncated" if "truncated" in str(e).lower() else "corrupt"
        return UnreadableImage(f"{kind}: {' '.join(str(e).split()) or type(e).__name__}")
    return _as_training_reads(encoded, container, change, picture)


class _UnsupportedPixelsError(Exception):
    """Pixels that have no agreed reading as 8-bit RGB."""


def _too_large(found: str) -> str:
    return f"too large: {found}, over the limit of {MAX_IMAGE_PIXELS:,} pixels"


def _as_training_reads(
    encoded: bytes, container: str, change: str | None, picture: npt.NDArray[np.uint8]
) -> ReadableImage | UnreadableImage:
    """Keeps the bytes, or re-encodes `picture` where there is a `change` or the training decoder wants one."""
    format_name = _STORED_FORMATS.get(container, "png")
    if change is None:
        decoded = _decode_as_training(encoded, format_name)
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
        encoded = _encode(picture, format_name)
        if _decode_as_training(encoded, format_name) is None:  # such as a side of over a million pixels
            height, width, _ = picture.shape
            return UnreadableImage(f"unsupported: TensorFlow refuses {width} x {height} pixels as {format_name}")
    height, width, _ = picture.shape
    return ReadableImage(encoded=encoded, format=format_name, height=height, width=width, change=change)


def _needed_change(image: Image.Image, container: str) -> str | None:
    """What the training decoder is known to get wrong; what else it gets wrong shows in the comparison."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        return "rotated upright"
    if image.mode == "CMYK":
        return "CMYK to RGB"
    if _is_transparent(image):
        return "transparency put on white"
    if container not in _STORED_FORMATS:
        return f"converted from {container}"
    if container == "WEBP" and getattr(image, "n_frames", 1) > 1:
        return "first frame of an animated WebP"  # the kernel must not see it, see preprocess.decode_image
    return None


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data or image.mode.startswith("I"):
        return False
    lowest: Any = image.convert("RGBA").getchannel("A").getextrema()[0]
    return bool(lowest < 255)


def _to_upright_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The picture as people see it, [height, width, 3]."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("I", "F"):
        raise _UnsupportedPixelsError(f"pixels of Pillow's mode {image.mode}, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _decode_as_training(encoded: bytes, format_name: str) -> npt.NDArray[np.uint8] | None:
    """[height, width, 3], or None where the training decoder refuses the bytes."""
    import tensorflow as tf

    try:
        return _training_decoder(is_webp=format_name == "webp")(np.array(encoded, object))
    except tf.errors.InvalidArgumentError:
        return None


@functools.cache
def _training_decoder(*, is_webp: bool) -> Callable[[npt.NDArray[np.object_]], npt.NDArray[np.uint8]]:
    """One branch of `preprocess.decode_image` on the CPU, to be called from any thread.

    In a session of its own, and without the `tf.cond` between the branches: an eager operation or a function would
    start TensorFlow's global context, and `launch`, which prepares a raw folder before it lays out its devices,
    could not divide the CPU or join a cluster any more.
    """
    import tensorflow as tf

    from trainer.data import preprocess

    with tf.Graph().as_default() as graph:
        encoded = tf.compat.v1.placeholder(tf.string, [])
        decoded = preprocess.decode_webp(encoded) if is_webp else preprocess.decode_not_webp(encoded)
    # -1: on the calling thread; handing one image over to a pool costs more than decoding it.
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0}, inter_op_parallelism_threads=-1)
    session = tf.compat.v1.Session(graph=graph, config=config)
    call: Callable[[npt.NDArray[np.object_]], npt.NDArray[np.uint8]] = session.make_callable(decoded, [encoded])
    return call


def _is_same_picture(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], tolerance: float) -> bool:
    """Whether the mean absolute difference is at most `tolerance` grey levels."""
    if a.shape != b.shape:
        return False
    if tolerance == 0.0:
        return np.array_equal(a, b)
    # Every fourth row and column shows a difference of that size as well as all of them.
    return bool(np.abs(a[::4, ::4].astype(np.int16) - b[::4, ::4]).mean() <= tolerance)


def _encode(picture: npt.NDArray[np.uint8], format_name: str) -> bytes:
    # A fresh image carries no EXIF, ICC profile or transparency entry over into the new file.
    buffer = io.BytesIO()
    if format_name == "jpeg":
        Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
