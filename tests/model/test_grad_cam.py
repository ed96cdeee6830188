import pathlib

import keras
import numpy as np
import pytest

from trainer.errors import ModelError
from trainer.model.classifier import backbone_of, build_classifier
from trainer.model.grad_cam import grad_cam


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    return build_classifier(backbone="mobilenet", num_classes=3, image_size_px=96)


def test_behind_an_average_the_map_is_the_features_weighted_by_the_head(classifier):
    """Selvaraju et al., section 3.1: for such a network Grad-CAM is CAM, which the weights of the head give at once."""
    images = np.random.default_rng(0).uniform(0, 255, [2, 96, 96, 3]).astype(np.float32)
    class_ids = np.array([0, 2])
    maps = grad_cam(classifier, images, class_ids)
    scaled = classifier.get_layer("scale_pixels")(images)
    features = np.asarray(backbone_of(classifier)(scaled, training=False))
    weights = np.asarray(classifier.get_layer("head").kernel)[:, class_ids].T
    expected = np.maximum((features * weights[:, None, None, :]).sum(axis=-1), 0)
    assert expected.max(axis=(1, 2)).min() > 0
    assert maps.shape == (2, 3, 3) == features.shape[:3]
    assert maps == pytest.approx(expected / expected.max(axis=(1, 2), keepdims=True), abs=1e-5)


def test_the_map_of_another_class_is_another_one(classifier):
    image = np.random.default_rng(1).uniform(0, 255, [1, 96, 96, 3]).astype(np.float32)
    first, second = (grad_cam(classifier, image, np.array([class_id])) for class_id in (0, 1))
    assert np.abs(first - second).max() > 0.05


def test_a_frozen_network_has_the_same_maps(classifier):
    image = np.random.default_rng(2).uniform(0, 255, [1, 96, 96, 3]).astype(np.float32)
    maps = grad_cam(classifier, image, np.array([1]))
    classifier.trainable = False
    try:
        assert grad_cam(classifier, image, np.array([1])) == pytest.approx(maps)
    finally:
        classifier.trainable = True


def test_a_backbone_that_ends_without_extent_is_asked_further_up():
    """At 32 px the last map of MobileNet is 1 x 1: the last one that has an extent is 2 x 2."""
    keras.utils.set_random_seed(0)
    small = build_classifier(backbone="mobilenet", num_classes=2, image_size_px=32)
    image = np.random.default_rng(0).uniform(0, 255, [1, 32, 32, 3]).astype(np.float32)
    assert grad_cam(small, image, np.array([0])).shape == (1, 2, 2)


def test_a_backbone_without_any_extent_is_an_error():
    images = keras.Input([8, 8, 3], name="images")
    inner_in = keras.Input([8, 8, 3])
    inner = keras.Model(inner_in, keras.layers.GlobalAveragePooling2D(keepdims=True)(inner_in), name="flat")
    head = keras.layers.Dense(2)(keras.layers.Flatten()(inner(keras.layers.Identity()(images))))
    classifier = keras.Model(images, head)
    with pytest.raises(ModelError, match="no feature map"):
        grad_cam(classifier, np.zeros([1, 8, 8, 3], np.float32), np.array([0]))


def test_a_network_within_the_backbone_has_its_map_where_it_is_called(tmp_path: pathlib.Path) -> None:
    inside = keras.Input((20, 20, 3))
    nested = keras.Model(inside, keras.layers.Conv2D(5, 3, activation="relu")(inside), name="nested")
    pixels = keras.Input((20, 20, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(nested(keras.layers.Rescaling(1 / 255)(pixels)))
    keras.Model(pixels, keras.layers.Dense(3)(pooled)).save(tmp_path / "mine.keras")
    images = np.random.default_rng(0).integers(0, 256, [2, 20, 20, 3]).astype(np.float32)
    for to_last_layer in (True, False):
        own = {"backbone": str(tmp_path / "mine.keras"), "pixels": "0-255", "to_last_layer": to_last_layer}
        classifier = build_classifier(num_classes=3, image_size_px=20, **own)
        assert grad_cam(classifier, images, np.array([0, 1])).shape == (2, 18, 18)
