"""Every backbone by name, with the pixels that its source wants and the weights that its package carries."""

from typing import Any

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from trainer.errors import ModelError
from trainer.model.backbones import efficientnet_lite
from trainer.model.backbones.registry import find_backbone, list_backbones
from trainer.model.classifier import backbone_of, build_classifier
from trainer.model.weights import load_pretrained

pytestmark = pytest.mark.slow

DAISY_LIKE = {985, 108, 723}  # daisy, sea anemone, pinwheel: what ImageNet has for a dahlia


def _scaled(name: str, images: np.ndarray) -> np.ndarray:
    model = build_classifier(backbone=name, num_classes=2, image_size_px=find_backbone(name).min_image_size_px)
    return model.get_layer("scale_pixels")(images).numpy()


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("resnet50", keras.applications.resnet50),
        ("vgg16", keras.applications.vgg16),
        ("mobilenet_v2", keras.applications.mobilenet_v2),
        ("densenet121", keras.applications.densenet),
        ("mobilenet_v3_small", keras.applications.mobilenet_v3),
        ("convnext_tiny", keras.applications.convnext),
        ("efficientnet_v2_b0", keras.applications.efficientnet_v2),
        ("xception", keras.applications.xception),
    ],
)
def test_pixels_are_scaled_as_the_source_scales_them(name: str, module: Any) -> None:
    size = find_backbone(name).min_image_size_px
    images = np.random.default_rng(0).integers(0, 256, [2, size, size, 3]).astype(np.float32)
    expected = module.preprocess_input(images.copy(), data_format="channels_last")
    np.testing.assert_allclose(_scaled(name, images), expected, rtol=1e-5, atol=1e-4)


def test_efficientnet_takes_pixels_as_keras_scales_them_for_imagenet_weights() -> None:
    # Keras: ((x / 255 - mean) / sqrt(variance)) / sqrt(std), the first part inside the network whatever its weights.
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = np.random.default_rng(0).integers(0, 256, [2, 32, 32, 3]).astype(np.float32)
    inside = (_scaled("efficientnet_b0", images) / 255 - mean) / np.sqrt(std)
    np.testing.assert_allclose(inside, (images / 255 - mean) / np.sqrt(std) / np.sqrt(std), atol=1e-4)


def test_every_keras_application_is_there() -> None:
    classes = {n for n in dir(keras.applications) if n[0].isupper()}
    plain = {name.replace("_", "") for name in list_backbones()}
    assert {c.lower() for c in classes} <= plain


@pytest.mark.parametrize("given", ["ResNet50", "resnet-50", "RESNET_50"])
def test_a_backbone_is_found_however_it_is_spelt(given: str) -> None:
    assert find_backbone(given).name == "resnet50"


def test_an_unknown_backbone_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(ModelError, match="efficientnet_lite0"):
        find_backbone("efficentnet_lite")


@pytest.fixture(scope="module")
def lite0() -> Any:
    model = build_classifier(backbone="efficientnet_lite0", num_classes=1000, image_size_px=224)
    load_pretrained(model, "efficientnet_lite0", "bundled")
    model.get_layer("head").set_weights(efficientnet_lite.load_bundled_head("efficientnet_lite0"))
    return model


def test_bundled_weights_recognise_a_photograph(lite0: Any) -> None:
    flower = load_sample_images().images[1]  # 427 x 640, a dahlia
    side = min(flower.shape[:2])
    crop = keras.ops.image.resize(flower[:side, -side:][None].astype(np.float32), (224, 224)).numpy()
    top_five = np.argsort(-lite0(crop, training=False).numpy()[0])[:5]
    assert top_five[0] in DAISY_LIKE, top_five


def test_the_variables_of_a_classifier_come_in_the_same_order_however_it_is_frozen() -> None:
    def paths(**kwargs: Any) -> list[str]:
        model = build_classifier(backbone="efficientnet_lite0", num_classes=3, image_size_px=32, **kwargs)
        return [v.path for v in model.variables]

    assert paths(trainable="head") == paths(batch_norm="frozen") == paths(batch_norm="per_replica")


def test_a_frozen_backbone_leaves_the_head_to_train() -> None:
    model = build_classifier(backbone="mobilenet_v3_small", num_classes=3, image_size_px=32, trainable="head")
    assert [v.path for v in model.trainable_variables] == ["head/kernel", "head/bias"]


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Any) -> None:
    other = build_classifier(backbone="mobilenet_v3_small", num_classes=3, image_size_px=32)
    path = tmp_path / "other.weights.h5"
    backbone_of(other).save_weights(path)
    model = build_classifier(backbone="efficientnet_lite0", num_classes=3, image_size_px=32)
    with pytest.raises(ModelError, match="does not fit efficientnet_lite0"):
        load_pretrained(model, "efficientnet_lite0", str(path))
    with pytest.raises(ModelError, match="does not exist"):
        load_pretrained(model, "efficientnet_lite0", str(tmp_path / "none.safetensors"))


def test_images_too_small_for_a_backbone_are_refused_with_its_own_size() -> None:
    with pytest.raises(ModelError, match="at least 71 px, not 48"):
        build_classifier(backbone="xception", num_classes=2, image_size_px=48)
