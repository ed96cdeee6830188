"""Prepare image files as every client does before sending them, with `image_file.make_plain`.

Files that all decoders read alike are sent unchanged, others re-encoded upright and opaque. Callers of TFLite and
ONNX files also resize; that is done here without TensorFlow, as in the README of every export.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from export.files.signature import STATUS, STATUS_OK
from export.runtime.runtimes import Arrays
from trainer.data.decode.geometry import Geometry
from trainer.data.decode.image_file import UnreadableImage, make_plain, open_picture
from trainer.data.preparation.deep_samples import FULL_BITS, usual_bits
from trainer.errors import DataError, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientImage:
    """An image file as a client sends it: `content`, or the `error` why it cannot be sent."""

    path: pathlib.Path
    content: bytes = b""
    error: str | None = None


def read_client_images(paths: Sequence[pathlib.Path], *, sample_bits: int | None = None) -> list[ClientImage]:
    """Read image files, in order; one that `prepare` would reject is an error of that image only.

    `sample_bits` is that of the model's `Signature`.

    Raises:
        UsageError: a file cannot be read.
    """
    return [_read(path, sample_bits) for path in paths]


def load_client_pixels(encoded: Sequence[bytes], geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Decode and resize with Pillow to [n, size, size, 3] RGB, as in training but for rounding.

    Raises:
        DataError: one of them is not an image.
    """
    return np.stack([_load_pixels(content, geometry) for content in encoded])


def predict_files(predict: Callable[[list[bytes]], Arrays], encoded: Sequence[bytes]) -> Arrays:
    """Return all outputs for image files from `predict`, which takes encoded images.

    The bytes are sent unchanged. A file that the graph refuses (a `status` other than ok) is sent again, re-encoded by
    `make_plain`.
    """
    outputs = predict(list(encoded))
    for i in map(int, np.flatnonzero(outputs[STATUS] != STATUS_OK.encode())):
        image = make_plain(encoded[i])
        if not isinstance(image, UnreadableImage) and image.encoded != encoded[i]:
            again = predict([image.encoded])
            outputs = {name: _with_row(values, i, again[name][0]) for name, values in outputs.items()}
    return outputs


def _with_row(values: npt.NDArray[Any], row: int, value: Any) -> npt.NDArray[Any]:
    changed = values.copy()
    changed[row] = value
    return changed


def _load_pixels(content: bytes, geometry: Geometry) -> npt.NDArray[np.uint8]:
    size = geometry.image_size_px
    with open_picture(content) as picture:
        if isinstance(picture, UnreadableImage):
            raise DataError(f"an image of {len(content)} bytes is {picture.reason}")
        image = Image.fromarray(picture.pixels)
    if geometry.resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _read(path: pathlib.Path, sample_bits: int | None) -> ClientImage:
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UsageError(f"the image {path} cannot be read: {e.strerror}") from None
    image = make_plain(content, sample_bits=sample_bits)
    if isinstance(image, UnreadableImage):
        return ClientImage(path=path, error=f"is {image.reason}")
    highest = image.highest_sample
    if sample_bits is None and highest is not None and usual_bits(highest) < FULL_BITS:
        return ClientImage(
            path=path,
            error=f"has 16 bits a sample and does not say how many are in use (its values need {usual_bits(highest)}), "
            "and neither does the model; convert it to 8 bits",
        )
    return ClientImage(path=path, content=image.encoded)
