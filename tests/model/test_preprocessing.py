"""Pixels as each backbone's source wants them, against the source's own function, for every name of the registry."""

from typing import Any

import keras
import numpy as np
import pytest

from trainer.model.backbones.registry import find_backbone, list_backbones
from trainer.model.backbones.scaling import ScalePixels

# The beginnings of names, the more special ones first, and the module of Keras that holds the source's function.
SOURCES = {
    "convnext": keras.applications.convnext,
    "densenet": keras.applications.densenet,
    "efficientnet_v2": keras.applications.efficientnet_v2,
    "inception_resnet_v2": keras.applications.inception_resnet_v2,
    "inception_v3": keras.applications.inception_v3,
    "mobilenet_v2": keras.applications.mobilenet_v2,
    "mobilenet_v3": keras.applications.mobilenet_v3,
    "mobilenet": keras.applications.mobilenet,
    "nasnet": keras.applications.nasnet,
    "resnet50_v2": keras.applications.resnet_v2,
    "resnet101_v2": keras.applications.resnet_v2,
    "resnet152_v2": keras.applications.resnet_v2,
    "resnet": keras.applications.resnet,
    "vgg16": keras.applications.vgg16,
    "vgg19": keras.applications.vgg19,
    "xception": keras.applications.xception,
}


def _preprocess_input(name: str, images: np.ndarray) -> Any:
    if name.startswith("efficientnet_lite"):
        return (images - 127) / 128  # of the release: MEAN_RGB 127, STDDEV_RGB 128
    if name.startswith("efficientnet_b"):
        # Keras does the rest inside: see `test_efficientnet_takes_pixels_as_keras_scales_them_for_imagenet_weights`.
        std = np.sqrt([0.229, 0.224, 0.225])
        return (images - 255 * np.array([0.485, 0.456, 0.406])) / std + 255 * np.array([0.485, 0.456, 0.406])
    module = next(module for start, module in SOURCES.items() if name.startswith(start))
    return module.preprocess_input(images.copy(), data_format="channels_last")


@pytest.mark.parametrize("name", list_backbones())
def test_pixels_are_those_of_the_sources_own_function(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3]).astype(np.float32)
    scaling = find_backbone(name).scaling
    scaled = ScalePixels(scaling.scale, scaling.offset, scaling.to_bgr)(images)
    np.testing.assert_allclose(scaled, _preprocess_input(name, images), rtol=1e-5, atol=2e-4)


def test_every_module_of_keras_with_such_a_function_is_among_the_sources() -> None:
    modules = {m for m in dir(keras.applications) if hasattr(getattr(keras.applications, m), "preprocess_input")}
    known = {module.__name__.rpartition(".")[2] for module in SOURCES.values()}
    # resnet50 has another name for the one of resnet; imagenet_utils is what they all are made of.
    assert modules - known == {"efficientnet", "imagenet_utils", "resnet50"}
