"""What every client does to an image file before it sends it: nothing, but for turning a rotated one upright.

TensorFlow ignores the EXIF orientation, so the contract (see `signature`) asks clients to.
"""

import io
import pathlib

from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.errors import UsageError

# What `preprocess.decode_image` reads.
_READABLE = {"JPEG", "PNG", "GIF", "BMP", "WEBP"}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1


def read_client_image(path: pathlib.Path) -> bytes:
    """The bytes of an image file as they are, or as an upright PNG (which loses nothing) where EXIF says rotated.

    Raises:
        UsageError: the file is missing, is no image, is broken, or is in a format that the model does not read.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UsageError(f"the image {path} cannot be read: {e.strerror}") from None
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format not in _READABLE:
                raise UsageError(f"{path} is {image.format}; the model reads JPEG, PNG, GIF, BMP and WebP: convert it")
            if image.getexif().get(_ORIENTATION_TAG, _UPRIGHT) == _UPRIGHT:
                return content
            upright = io.BytesIO()
            ImageOps.exif_transpose(image).convert("RGB").save(upright, "PNG")
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image; give JPEG, PNG, GIF, BMP or WebP files") from None
    # Pillow's decoders raise all of these for broken files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        raise UsageError(f"{path} is a broken image: {e}") from None
    return upright.getvalue()
