"""Choose a recipe (`--recipe auto`) by the size of the dataset and its likeness to the images of the pretraining.

               like                      unlike
    small      frozen                    staged
    large      finetune                  finetune, more of it for longer

The table is that of Yosinski et al. 2014 (arXiv:1411.1792) and of many courses since. Likeness is the cross-validated
score of a linear classifier on the pretrained features of a sample.
"""

from typing import Any, Final, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config.config import Config
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.records import Example
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.dataset.storage import DatasetPath
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.preparation.command import check_trainable
from trainer.model.backbones.registry import find_backbone
from trainer.model.classifier import build_classifier, resolve_weights
from trainer.model.weights import load_pretrained

# A dataset with fewer training images, or fewer per class on average, is small.
SMALL_DATASET: Final = 5_000
SMALL_CLASS: Final = 100
# Score of the linear classifier, from 0 (chance) to 1 (perfect), from which the images are like the pretraining.
LIKE: Final = 0.6
_SAMPLE_SIZE: Final = 500
_BATCH_SIZE: Final = 32
_NUM_FOLDS: Final = 3


class Choice(NamedTuple):
    """A recipe, and the reason for it."""

    recipe: str
    reason: str


class Probe(NamedTuple):
    """The score of a linear classifier on pretrained features: 0 for chance, 1 for perfect."""

    num_images: int
    score: float


def choose_recipe(config: Config, dataset_dir: DatasetPath) -> Choice:
    """Choose a recipe; this runs the backbone on a sample of the training images, which takes seconds.

    Raises:
        ModelError: There is no such backbone, or its weights are not available.
        DataError: The dataset cannot be read.
    """
    manifest = Manifest.load(dataset_dir)
    check_trainable(manifest, dataset_dir)
    backbone = find_backbone(config.model.backbone, config.model.pixels)
    weights = resolve_weights(config.model.weights, backbone)
    if weights == "none":
        return Choice("scratch", "there are no pretrained weights to start from (model.weights is none)")
    num_images = manifest.splits["train"].num_examples
    is_small = num_images < SMALL_DATASET or num_images / manifest.num_classes < SMALL_CLASS
    probe = probe_features(config, manifest, dataset_dir, weights)
    is_like = probe.score >= LIKE
    bound = f"fewer than {SMALL_DATASET}, or {SMALL_CLASS} a class" if is_small else f"{SMALL_DATASET} or more"
    size = (
        f"{num_images} training images of {manifest.num_classes} classes are {'few' if is_small else 'many'} ({bound})."
    )
    likeness = (
        f"They are {'like' if is_like else 'unlike'} the pretraining images: a linear classifier on {backbone.name}'s "
        f"features scores {probe.score:.0%} (0% is chance; {LIKE:.0%} or more is like)."
    )
    return Choice(_recipe_for(is_small, is_like), f"{size} {likeness}")


def probe_features(config: Config, manifest: Manifest, dataset_dir: DatasetPath, weights: str) -> Probe:
    """Score a sample of the training images, chosen by `train.seed`; see `choose_recipe`."""
    backbone = find_backbone(config.model.backbone, config.model.pixels)
    image_size_px = config.model.image_size_px or backbone.image_size_px
    geometry = Geometry(image_size_px=image_size_px, resize=config.data.resize)
    with SplitReader(dataset_dir, manifest, "train") as reader:
        random = np.random.default_rng(config.train.seed)
        rows = random.permutation(reader.num_examples)[:_SAMPLE_SIZE]
        examples = [Example.from_payload(payload) for payload in reader.read(np.sort(rows))]
    labels = np.zeros([len(examples), manifest.num_classes], np.int64)
    for row, example in enumerate(examples):
        labels[row, list(example.labels)] = 1
    features = _compute_features(config, weights, geometry, examples)
    score = _score_several(features, labels) if manifest.task == "multi_label" else _score_one(features, labels)
    return Probe(len(examples), score)


def _recipe_for(is_small: bool, is_like: bool) -> str:
    if not is_small:
        return "finetune"
    return "frozen" if is_like else "staged"


def _compute_features(
    config: Config, weights: str, geometry: Geometry, examples: list[Example]
) -> npt.NDArray[np.float32]:
    model = build_classifier(
        backbone=config.model.backbone,
        num_classes=2,
        image_size_px=geometry.image_size_px,
        trainable="head",
        pixels=config.model.pixels,
    )
    load_pretrained(model, config.model.backbone, weights, pixels=config.model.pixels)
    trunk = keras.Model(model.input, model.get_layer("pool").output)
    images = tf.data.Dataset.from_tensor_slices([example.encoded for example in examples])
    images = images.map(lambda encoded: preprocess.load_image(encoded, geometry), num_parallel_calls=tf.data.AUTOTUNE)
    batches: Any = images.batch(_BATCH_SIZE)
    return np.concatenate([trunk(batch, training=False).numpy() for batch in batches])


def _score_one(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score

    classes = labels.argmax(axis=1)
    counts = labels.sum(axis=0)
    is_rich = counts[counts > 0].min() >= _NUM_FOLDS
    folds = (StratifiedKFold if is_rich else KFold)(_NUM_FOLDS, shuffle=True, random_state=0)
    accuracy = float(cross_val_score(_linear_classifier(), features, classes, cv=folds).mean())
    chance = float(counts.max() / len(classes))
    return max(0.0, (accuracy - chance) / (1.0 - chance)) if chance < 1 else 0.0


def _score_several(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Score by the mean area under the ROC curve, which is one half for chance."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import KFold, cross_val_predict

    areas = []
    for column in labels.T:
        if _NUM_FOLDS <= column.sum() <= len(column) - _NUM_FOLDS:
            folds = KFold(_NUM_FOLDS, shuffle=True, random_state=0)
            found = cross_val_predict(_linear_classifier(), features, column, cv=folds, method="decision_function")
            areas.append(float(roc_auc_score(column, found)))
    return max(0.0, 2.0 * float(np.mean(areas)) - 1.0) if areas else 0.0


def _linear_classifier() -> Any:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # There are more features than images.
    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=100.0))
