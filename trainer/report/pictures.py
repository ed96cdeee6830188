"""Images of a split with their true and predicted classes, small enough to embed in a page."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image

from trainer.data.dataset.manifest import SPLITS, Manifest
from trainer.data.dataset.records import Example
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.dataset.storage import DatasetPath
from trainer.errors import DataError
from trainer.metrics.calibration import confidences
from trainer.metrics.evaluation import Evaluation
from trainer.metrics.predictions import Predictions, is_correct, predict
from trainer.metrics.scores import Labels, Logits, example_losses, membership, softmax
from trainer.run.run_dir import RunInfo

# Twice what the page shows, for dense screens.
MAX_SIDE_PX = 224
# Smaller images are enlarged without smoothing, pixel by pixel.
PIXEL_ART_BELOW_PX = 64
_JPEG_QUALITY = 82


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One example, with the probabilities of the predicted and of the true class.

    In multi-label runs `true` and `predicted` list the classes, and the probabilities are None.
    """

    uri: str
    is_pixel_art: bool
    filename: str
    true: str
    predicted: str
    probability: float | None
    true_probability: float | None

    @property
    def is_correct(self) -> bool:
        return self.true == self.predicted


def choose_samples(num_examples: int, count: int) -> npt.NDArray[np.int64]:
    """Choose up to `count` distinct examples at random, always the same; their share of errors is unbiased."""
    chosen = np.random.default_rng(0).permutation(num_examples)[:count]
    return np.sort(chosen).astype(np.int64)


def choose_mistakes(
    labels: Labels, logits: Logits, count: int, evaluation: Evaluation | None = None
) -> npt.NDArray[np.int64]:
    """Choose up to `count` wrongly classified examples, the most confident first; in multi-label runs, by loss."""
    if labels.ndim == 2:
        wrong = np.flatnonzero(~is_correct(labels, predicted_at(logits, evaluation)))
        rank = example_losses(labels[wrong], logits[wrong], "multi_label")
    else:
        wrong = np.flatnonzero(np.argmax(logits, axis=1) != labels)
        found = [values for values, _ in confidences(labels, logits, "single_label")]
        rank = np.concatenate([np.zeros(0), *found])[wrong]
    return wrong[np.argsort(-rank, kind="stable")][:count].astype(np.int64)


def predicted_at(logits: Logits, evaluation: Evaluation | None) -> Predictions:
    """Predict the classes of a multi-label run, at the thresholds of the evaluation."""
    used = [c.threshold for c in evaluation.classes] if evaluation else []
    thresholds = np.array([t for t in used if t is not None])
    return predict(logits, "multi_label", thresholds if len(thresholds) else None)


def load_pictures(
    info: RunInfo,
    dataset_dir: DatasetPath,
    evaluation: Evaluation,
    indices: npt.NDArray[np.int64],
    labels: Labels,
    logits: Logits,
    resize: Literal["crop", "squash"],
) -> list[Picture]:
    """Load the examples `indices` of a split, in this order, with the part of each image that the model sees.

    `labels` and `logits` are those of the whole split, as evaluated.

    Raises:
        DataError: The dataset is missing, unreadable, or not the one that was evaluated.
    """
    split, names = evaluation.split, evaluation.class_names
    several = predicted_at(logits[indices], evaluation) if labels.ndim == 2 else None
    true_classes = membership(labels[indices], len(names))
    payloads = read_payloads(info, dataset_dir, split, indices)
    pictures = []
    for row, (index, payload) in enumerate(zip(indices.tolist(), payloads, strict=True)):
        example = Example.from_payload(payload)
        true = np.flatnonzero(true_classes[row]).tolist()
        if list(example.labels) != true:
            raise DataError(
                f"example {index} of the split {split!r} in {dataset_dir} has label "
                f"{', '.join(map(str, example.labels))}, and {', '.join(map(str, true))} was evaluated: the dataset is "
                "another one; evaluate the run again"
            )
        uri, is_pixel_art = _embed(example, resize)
        probabilities = softmax(logits[index : index + 1])[0]
        best = int(np.argmax(logits[index]))
        predicted = [best] if several is None else np.flatnonzero(several[row]).tolist()
        pictures.append(
            Picture(
                uri=uri,
                is_pixel_art=is_pixel_art,
                filename=example.filename.encode(errors="replace").decode(),
                true=", ".join(names[k] for k in true),
                predicted=", ".join(names[k] for k in predicted) or "nothing",
                probability=float(probabilities[best]) if several is None else None,
                true_probability=float(probabilities[true[0]]) if several is None else None,
            )
        )
    return pictures


def read_payloads(
    info: RunInfo, dataset_dir: DatasetPath, split: str, indices: Sequence[int] | npt.NDArray[np.int64]
) -> list[bytes]:
    """Read records of the dataset that `info`'s run was trained on; raise DataError if it is no longer there."""
    manifest = Manifest.load(dataset_dir)
    if manifest.content_hash() != info.dataset_hash:
        raise DataError(f"{dataset_dir} holds another dataset now than the one that the run was trained on")
    (known,) = [name for name in SPLITS if name == split]
    with SplitReader(dataset_dir, manifest, known) as reader:
        return reader.read(np.asarray(indices, np.int64))


def _embed(example: Example, resize: Literal["crop", "squash"]) -> tuple[str, bool]:
    """Return a data URI of the square that the model sees, and whether it is pixel art."""
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
    """Return a data URI of an RGB image, made square, and whether it is pixel art."""
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
        # 16 bits per pixel: the decoder of the model takes the upper 8, while Pillow would clip.
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
