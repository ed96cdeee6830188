"""Losses against Keras's own, and what the labels of a dataset allow."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config.config import load_config
from trainer.data.dataset.manifest import Manifest, Split
from trainer.errors import ConfigError
from trainer.plan.model_plan import resolve_class_weights, resolve_task
from trainer.step.losses import Objective

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(scale=3.0, size=[16, 4]).astype(np.float32)
LABELS = RANDOM.integers(4, size=16)
SEVERAL = RANDOM.integers(2, size=[16, 4]).astype(np.float32)


def losses(task: Any, labels: Any, logits: Any = LOGITS, weights: Any = None, **settings: Any) -> Any:
    overrides = [f"train.{name}={value}" for name, value in settings.items()]
    objective = Objective.of(
        load_config(overrides=overrides), task=task, num_classes=logits.shape[1], class_weights=weights
    )
    return objective.losses(objective.targets(tf.constant(labels)), tf.constant(logits)).numpy()


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"label_smoothing": 0.1}, keras.losses.CategoricalCrossentropy(True, 0.1, reduction=None)),
        ({"loss": "focal"}, keras.losses.CategoricalFocalCrossentropy(1.0, 2.0, True, reduction=None)),
    ],
)
def test_losses_of_one_label_are_those_of_keras(settings: dict[str, Any], reference: Any) -> None:
    expected = reference(keras.ops.one_hot(LABELS, 4), LOGITS)
    np.testing.assert_allclose(losses("single_label", LABELS, **settings), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({}, keras.losses.BinaryCrossentropy(True, reduction=None)),
        ({"label_smoothing": 0.2}, keras.losses.BinaryCrossentropy(True, 0.2, reduction=None)),
        (
            {"loss": "focal", "focal_gamma": 3.0},
            keras.losses.BinaryFocalCrossentropy(gamma=3.0, from_logits=True, reduction=None),
        ),
    ],
)
def test_losses_of_several_labels_are_those_of_keras(settings: dict[str, Any], reference: Any) -> None:
    np.testing.assert_allclose(
        losses("multi_label", SEVERAL, **settings), reference(SEVERAL, LOGITS), rtol=1e-4, atol=1e-6
    )


def test_a_binary_model_has_the_loss_of_a_sigmoid() -> None:
    logits = np.stack([np.zeros(16, np.float32), LOGITS[:, 0]], axis=1)
    labels = LABELS % 2
    reference = keras.losses.BinaryCrossentropy(True, 0.1, reduction=None)
    expected = reference(labels[:, None].astype(np.float32), LOGITS[:, :1])
    np.testing.assert_allclose(losses("binary", labels, logits, label_smoothing=0.1), expected, rtol=1e-5)


def test_class_weights_multiply_the_loss_of_their_class() -> None:
    weights = [1.0, 2.0, 0.5, 4.0]
    plain = losses("single_label", LABELS)
    np.testing.assert_allclose(losses("single_label", LABELS, weights=weights), plain * np.take(weights, LABELS))
    reference = tf.nn.weighted_cross_entropy_with_logits(SEVERAL, LOGITS, tf.constant(weights))
    expected = tf.reduce_mean(reference, axis=-1)
    np.testing.assert_allclose(losses("multi_label", SEVERAL, weights=weights), expected, rtol=1e-5)


def test_what_is_right_is_the_first_class_or_the_share_of_classes() -> None:
    one = Objective(task="single_label", num_classes=4)
    right = one.correct(one.targets(tf.constant(LABELS)), tf.constant(LOGITS))
    np.testing.assert_array_equal(right, LOGITS.argmax(axis=1) == LABELS)
    several = Objective(task="multi_label", num_classes=4)
    share = several.correct(several.targets(tf.constant(SEVERAL)), tf.constant(LOGITS))
    np.testing.assert_allclose(share, ((LOGITS > 0) == (SEVERAL > 0)).mean(axis=1))


def manifest(class_counts: list[int], task: Any = "single_label", num_examples: int | None = None) -> Manifest:
    split = Split(num_examples=num_examples or sum(class_counts), class_counts=class_counts, shards=[])
    names = [f"class {i}" for i in range(len(class_counts))]
    return Manifest(name="set", source="test", class_names=names, seed=0, task=task, splits={"train": split})


def test_balanced_weights_make_all_classes_count_alike() -> None:
    found = manifest([10, 30, 60])
    weights = resolve_class_weights(load_config(overrides=["train.class_weights=balanced"]), "single_label", found)
    assert weights is not None
    shares = [count * weight for count, weight in zip([10, 30, 60], weights, strict=True)]
    assert shares == pytest.approx([100 / 3] * 3)
    several = manifest([10, 40], "multi_label", num_examples=50)
    weights = resolve_class_weights(load_config(overrides=["train.class_weights=balanced"]), "multi_label", several)
    assert weights == pytest.approx([4.0, 0.25]), "having the class counts as much as not having it"


@pytest.mark.parametrize(
    ("setting", "found", "answer"),
    [
        ("train.class_weights={class 7: 2.0}", manifest([1, 1]), "names the class 'class 7', which the dataset does"),
        ("train.class_weights=balanced", manifest([1, 0]), "the class 'class 1' has no training images"),
        ("train.task=binary", manifest([1, 1, 1]), "has 3 classes, not two"),
        ("train.task=single_label", manifest([1, 1], "multi_label"), "have several labels; use --set train.task="),
    ],
)
def test_what_the_dataset_does_not_allow_is_refused(setting: str, found: Manifest, answer: str) -> None:
    config = load_config(overrides=[setting])
    with pytest.raises(ConfigError, match=answer):
        resolve_class_weights(config, resolve_task(config.train.task, found), found)
