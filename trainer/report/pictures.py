"""Images of a split, each with what it shows and what was predicted, small enough to lie inside a page."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image

from trainer.data.manifest import SPLITS, Manifest
from trainer.data.records import Example
from trainer.data.split_reader import SplitReader
from trainer.data.storage import DatasetPath
from trainer.errors import DataError
from trainer.metrics.scores import Labels, Logits, softmax
from trainer.run_dir import RunInfo

# Twice what the page shows, for dense screens.
MAX_SIDE_PX = 224
# Below this an image is shown pixel by pixel, enlarged without smoothing.
PIXEL_ART_BELOW_PX = 64
_JPEG_QUALITY = 82


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One example: `probability` is of the predicted class, `true_probability` of the true one."""

    uri: str
    is_pixel_art: bool
    filename: str
    true: str
    predicted: str
    probability: float
    true_probability: float

    @property
    def is_correct(self) -> bool:
        return self.true == self.predicted


def choose_samples(num_examples: int, count: int) -> npt.NDArray[np.int64]:
    """Up to `count` distinct examples at random, the same ones every time: the share of errors is an honest one."""
    chosen = np.random.default_rng(0).permutation(num_examples)[:count]
    return np.sort(chosen).astype(np.int64)


def choose_mistakes(labels: Labels, logits: Logits, count: int) -> npt.NDArray[np.int64]:
    """Up to `count` wrongly classified examples, those first that were the surest."""
    wrong = np.flatnonzero(np.argmax(logits, axis=1) != labels)
    confidence = softmax(logits[wrong]).max(axis=1, initial=0)
    return wrong[np.argsort(-confidence, kind="stable")][:count].astype(np.int64)


def load_pictures(
    info: RunInfo,
    dataset_dir: DatasetPath,
    split: str,
    indices: npt.NDArray[np.int64],
    labels: Labels,
    logits: Logits,
    resize: Literal["crop", "squash"],
) -> list[Picture]:
    """The examples `indices` of a split, in that order.

    Args:
        labels, logits: of the whole split, as evaluated.
        resize: what the model sees of an image; it is what the page shows.

    Raises:
        DataError: the dataset is gone, unreadable, or not the one that was evaluated.
    """
    payloads = _read_payloads(info, dataset_dir, split, indices)
    pictures = []
    for index, payload in zip(indices.tolist(), payloads, strict=True):
        example = Example.from_payload(payload)
        if example.label != labels[index]:
            raise DataError(
                f"example {index} of the split {split!r} in {dataset_dir} has label {example.label}, and "
                f"{labels[index]} was evaluated: the dataset is another one; evaluate the run again"
            )
        uri, is_pixel_art = _embed(example, resize)
        probabilities = softmax(logits[index : index + 1])[0]
        predicted = int(np.argmax(logits[index]))
        pictures.append(
            Picture(
                uri=uri,
                is_pixel_art=is_pixel_art,
                filename=example.filename.encode(errors="replace").decode(),
                true=info.class_names[example.label],
                predicted=info.class_names[predicted],
                probability=float(probabilities[predicted]),
                true_probability=float(probabilities[example.label]),
            )
        )
    return pictures


def _read_payloads(
    info: RunInfo, dataset_dir: DatasetPath, split: str, indices: Sequence[int] | npt.NDArray[np.int64]
) -> list[bytes]:
    manifest = Manifest.load(dataset_dir)
    if manifest.content_hash() != info.dataset_hash:
        raise DataError(f"{dataset_dir} holds another dataset now than the one that the run was trained on")
    (known,) = [name for name in SPLITS if name == split]
    with SplitReader(dataset_dir, manifest, known) as reader:
        return reader.read(np.asarray(indices, np.int64))


def _embed(example: Example, resize: Literal["crop", "squash"]) -> tuple[str, bool]:
    """A data URI of the square that the model sees, and whether it is pixel art."""
    try:
        image = _to_rgb(PIL.Image.open(io.BytesIO(example.encoded)))
    except OSError as e:
        raise DataError(f"the image {example.filename!r} of the dataset cannot be read: {e}") from None
    if resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return embed(image)


def embed(image: PIL.Image.Image) -> tuple[str, bool]:
    """A data URI of an RGB image, made square, and whether it is pixel art."""
    is_pixel_art = max(image.size) < PIXEL_ART_BELOW_PX
    side = min(max(image.size), MAX_SIDE_PX)
    image = image.resize((side, side), PIL.Image.Resampling.LANCZOS, reducing_gap=3)
    content = io.BytesIO()
    if is_pixel_art:
        image.save(content, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(content, "JPEG", quality=_JPEG_QUALITY)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", is_pixel_art


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel; Pillow would clip them to 8 where the decoder of the model takes the upper ones.
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
