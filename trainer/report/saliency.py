"""Heat maps of a few images of the split, by Grad-CAM."""

import dataclasses

import numpy as np
import PIL.Image

from trainer.config.config import Config
from trainer.data.dataset.records import Example
from trainer.data.dataset.storage import DatasetPath
from trainer.data.decode.geometry import Geometry
from trainer.errors import DataError, ModelError, RunError
from trainer.metrics.evaluation import Evaluation
from trainer.metrics.scores import Labels, Logits
from trainer.report.pictures import choose_mistakes, choose_samples, embed, read_payloads
from trainer.run.checkpoint_store import Weights, Which, find_checkpoint
from trainer.run.load_classifier import load_classifier
from trainer.run.run_dir import RunDir

NUM_IMAGES = 6
# Of the heat map over the image where it is strongest, in a single colour: more of it always means more.
_OPACITY = 0.8
_COLOR = np.array([255, 84, 16], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """An image as the model sees it, the same under its heat map, and the class that the map is of."""

    image_uri: str
    heat_uri: str
    is_pixel_art: bool
    predicted: str
    true: str
    is_correct: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saliency:
    pictures: list[Explained]
    missing: str | None = None


def load_saliency(
    run: RunDir,
    config: Config,
    evaluation: Evaluation,
    labels: Labels,
    logits: Logits,
    dataset_dir: DatasetPath,
    num_images: int = NUM_IMAGES,
) -> Saliency:
    """Compute heat maps of `num_images` images, up to half of them mistakes, or say why that is impossible."""
    if num_images == 0:
        return Saliency(pictures=[], missing="none were asked for")
    mistakes = choose_mistakes(labels, logits, num_images // 2, evaluation)
    others = [i for i in choose_samples(len(labels), 2 * num_images).tolist() if i not in mistakes]
    indices = np.array([*others[: num_images - len(mistakes)], *mistakes.tolist()], np.int64)
    info = run.info()
    geometry = Geometry(image_size_px=info.image_size_px, resize=config.data.resize)
    try:
        payloads = read_payloads(info, dataset_dir, evaluation.split, indices)
        classifier = load_classifier(run, which=_checkpoint_of(run, evaluation), weights=_weights_of(evaluation))
        return Saliency(pictures=_explain(classifier, payloads, indices, labels, logits, evaluation, geometry))
    except (DataError, RunError, ModelError) as e:
        return Saliency(pictures=[], missing=str(e))


def _checkpoint_of(run: RunDir, evaluation: Evaluation) -> Which:
    choices: tuple[Which, ...] = ("best", "last")
    for which in choices:
        if find_checkpoint(run, which) == evaluation.global_step:
            return which
    raise RunError(f"the checkpoint of step {evaluation.global_step}, which was evaluated, is no longer there")


def _weights_of(evaluation: Evaluation) -> Weights:
    known: dict[str, Weights] = {"raw": "raw", "averages": "averages"}
    return known.get(evaluation.weights, "auto")


def _explain(
    classifier: object,
    payloads: list[bytes],
    indices: np.ndarray,  # type: ignore[type-arg]
    labels: Labels,
    logits: Logits,
    evaluation: Evaluation,
    geometry: Geometry,
) -> list[Explained]:
    from trainer.data.decode.preprocess import load_image
    from trainer.model.grad_cam import grad_cam

    pixels = np.stack([load_image(Example.from_payload(p).encoded, geometry).numpy() for p in payloads])
    predicted = np.argmax(logits[indices], axis=1)
    maps = grad_cam(classifier, pixels.astype(np.float32), predicted)
    names, explained = evaluation.class_names, []
    for image, heat, index, class_id in zip(pixels, maps, indices.tolist(), predicted.tolist(), strict=True):
        true = np.flatnonzero(labels[index]).tolist() if labels.ndim == 2 else [int(labels[index])]
        (image_uri, is_pixel_art), (heat_uri, _) = embed(PIL.Image.fromarray(image)), embed(overlay(image, heat))
        explained.append(
            Explained(
                image_uri=image_uri,
                heat_uri=heat_uri,
                is_pixel_art=is_pixel_art,
                predicted=names[class_id],
                true=", ".join(names[k] for k in true) or "none",
                is_correct=class_id in true,
            )
        )
    return explained


def overlay(image: np.ndarray, heat: np.ndarray) -> PIL.Image.Image:  # type: ignore[type-arg]
    """Draw `heat` [height, width] in [0, 1], enlarged smoothly, over `image` [size, size, 3] uint8 in grey."""
    size = (image.shape[1], image.shape[0])
    enlarged = PIL.Image.fromarray(heat.astype(np.float32)).resize(size, PIL.Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(enlarged), 0, 1)
    grey = np.asarray(PIL.Image.fromarray(image).convert("L").convert("RGB"), np.float32)
    opacity = _OPACITY * strength[:, :, None]
    return PIL.Image.fromarray(np.round((1 - opacity) * grey + opacity * _COLOR).astype(np.uint8))
