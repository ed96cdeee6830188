"""Presets of keras-hub as backbones, with one saved here, so that nothing is downloaded."""

import pathlib
import sys
from typing import Any

import numpy as np
import pytest

from trainer.errors import ModelError
from trainer.model.backbones.blocks import blocks_of
from trainer.model.backbones.registry import find_backbone
from trainer.model.classifier import backbone_of, build_classifier
from trainer.model.weights import load_pretrained


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ModelError, match=r"pip install 'trainer\[hub\]'"):
        find_backbone("hub:resnet_50_imagenet")


@pytest.fixture(scope="module")
def hub() -> Any:
    return pytest.importorskip("keras_hub", reason="the extra hub is not installed")


@pytest.fixture(scope="module")
def preset(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny residual network, saved as keras-hub saves a classifier."""
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        use_pre_activation=False,
        image_shape=(32, 32, 3),
    )
    converter = hub.layers.ResNetImageConverter(image_size=(32, 32), scale=[0.01, 0.02, 0.03], offset=[-1.0, -2.0, 0.5])
    preprocessor = hub.models.ResNetImageClassifierPreprocessor(converter)
    classifier = hub.models.ResNetImageClassifier(backbone, num_classes=5, preprocessor=preprocessor)
    path = tmp_path_factory.mktemp("hub") / "tiny"
    classifier.save_to_preset(str(path))
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, [2, 32, 32, 3]).astype(np.float32)


def _classifier(preset: pathlib.Path, weights: str, **kwargs: Any) -> Any:
    name = f"hub:{preset}"
    model = build_classifier(backbone=name, num_classes=3, **{"image_size_px": 32, **kwargs})
    load_pretrained(model, name, weights)
    return model


def test_pixels_are_scaled_as_the_image_converter_scales_them(
    hub: Any, preset: pathlib.Path, images: np.ndarray
) -> None:
    converter = hub.layers.ImageConverter.from_preset(str(preset))
    scaled = _classifier(preset, "none").get_layer("scale_pixels")(images)
    np.testing.assert_allclose(scaled, converter(images), rtol=1e-5, atol=1e-5)


def test_the_backbone_of_the_preset_comes_with_its_weights(hub: Any, preset: pathlib.Path, images: np.ndarray) -> None:
    source = hub.models.ImageClassifier.from_preset(str(preset)).backbone
    network = backbone_of(_classifier(preset, "bundled"))
    np.testing.assert_allclose(network(images, training=False), source(images, training=False), rtol=1e-4, atol=1e-5)
    random = backbone_of(_classifier(preset, "none"))
    assert not np.allclose(random.get_weights()[0], network.get_weights()[0])


def test_its_size_and_its_blocks_are_known(preset: pathlib.Path) -> None:
    assert find_backbone(f"hub:{preset}").image_size_px == 32
    assert len(blocks_of(backbone_of(_classifier(preset, "none")))) == 1 + 3


def test_other_sizes_and_precisions_are_taken(preset: pathlib.Path) -> None:
    network = backbone_of(_classifier(preset, "bundled", image_size_px=64, dtype_policy="mixed_bfloat16"))
    assert network.input_shape == (None, 64, 64, 3)
    assert {layer.compute_dtype for layer in network.layers if layer.weights} == {"bfloat16"}


def test_a_transformer_is_refused(hub: Any, tmp_path: pathlib.Path) -> None:
    backbone = hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    converter = hub.layers.ViTImageConverter(image_size=(32, 32), scale=1 / 127.5, offset=-1)
    preprocessor = hub.models.ViTImageClassifierPreprocessor(converter)
    classifier = hub.models.ViTImageClassifier(backbone, num_classes=5, preprocessor=preprocessor)
    classifier.save_to_preset(str(tmp_path / "vit"))
    with pytest.raises(ModelError, match=r"is a transformer \(ViTBackbone\)"):
        _classifier(tmp_path / "vit", "none")


def test_an_unknown_preset_is_an_error_that_names_it(hub: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ModelError, match="could not be had as an image classifier"):
        find_backbone(f"hub:{tmp_path / 'nothing'}")
