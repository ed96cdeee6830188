"""The backbones by name: how each is built, what pixels it wants, and where its pretrained weights come from.

A new backbone is one entry of `_REGISTRY`. Beside them there are those of keras-hub (`hub`) and models of the user's
own (`own_model`).
"""

import difflib
import re

import keras

from trainer.errors import ModelError
from trainer.model.backbones import efficientnet_lite, hub, saved_model
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.scaling import (
    CAFFE,
    EFFICIENTNET,
    EFFICIENTNET_LITE,
    MINUS_ONE_TO_ONE,
    TORCH,
    ZERO_TO_255,
    PixelScaling,
)

__all__ = ["Backbone", "PixelScaling", "find_backbone", "list_backbones"]


# Name: class in keras.applications, side of the images it was trained on, scaling.
_KERAS_APPLICATIONS: dict[str, tuple[str, int, PixelScaling]] = {
    **{
        f"convnext_{s.lower()}": (f"ConvNeXt{s}", 224, ZERO_TO_255)
        for s in ("Tiny", "Small", "Base", "Large", "XLarge")
    },
    **{f"densenet{depth}": (f"DenseNet{depth}", 224, TORCH) for depth in (121, 169, 201)},
    **{
        f"efficientnet_b{i}": (f"EfficientNetB{i}", size, EFFICIENTNET)
        for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    },
    **{
        f"efficientnet_v2_b{i}": (f"EfficientNetV2B{i}", size, ZERO_TO_255)
        for i, size in enumerate((224, 240, 260, 300))
    },
    "efficientnet_v2_s": ("EfficientNetV2S", 384, ZERO_TO_255),
    "efficientnet_v2_m": ("EfficientNetV2M", 480, ZERO_TO_255),
    "efficientnet_v2_l": ("EfficientNetV2L", 480, ZERO_TO_255),
    "inception_resnet_v2": ("InceptionResNetV2", 299, MINUS_ONE_TO_ONE),
    "inception_v3": ("InceptionV3", 299, MINUS_ONE_TO_ONE),
    "mobilenet": ("MobileNet", 224, MINUS_ONE_TO_ONE),
    "mobilenet_v2": ("MobileNetV2", 224, MINUS_ONE_TO_ONE),
    "mobilenet_v3_large": ("MobileNetV3Large", 224, ZERO_TO_255),
    "mobilenet_v3_small": ("MobileNetV3Small", 224, ZERO_TO_255),
    "nasnet_large": ("NASNetLarge", 331, MINUS_ONE_TO_ONE),
    "nasnet_mobile": ("NASNetMobile", 224, MINUS_ONE_TO_ONE),
    **{f"resnet{depth}": (f"ResNet{depth}", 224, CAFFE) for depth in (50, 101, 152)},
    **{f"resnet{depth}_v2": (f"ResNet{depth}V2", 224, MINUS_ONE_TO_ONE) for depth in (50, 101, 152)},
    "vgg16": ("VGG16", 224, CAFFE),
    "vgg19": ("VGG19", 224, CAFFE),
    "xception": ("Xception", 299, MINUS_ONE_TO_ONE),
}
_MIN_IMAGE_SIZE_PX = {"inception_resnet_v2": 75, "inception_v3": 75, "xception": 71}


def list_backbones() -> list[str]:
    """Return every name that `find_backbone` knows, sorted."""
    return sorted(_REGISTRY)


def find_backbone(name: str, pixels: str | None = None, *, to_last_layer: bool = False) -> Backbone:
    """Return the backbone called `name`; case, '-' and '_' do not matter (`ResNet50` is `resnet50`).

    `hub:PRESET` is one of keras-hub. A name that ends with .keras is the file of a saved model: `pixels`, the setting
    `model.pixels`, says what it was trained on, and with `to_last_layer` it is kept up to its last layer.

    Raises:
        ModelError: there is none, and the message names the nearest; or `pixels` is missing or not needed.
    """
    if saved_model.is_own_model(name):
        return saved_model.open_backbone(name, pixels, to_last_layer=to_last_layer)
    if pixels is not None:
        raise ModelError(
            f"model.pixels is {pixels!r}, and the backbone {name} is known to want its pixels in a way of its own; "
            "leave model.pixels out"
        )
    if name.startswith(hub.PREFIX):
        return hub.open_backbone(name)
    by_plain_name = {_plain(known): known for known in _REGISTRY}
    known = by_plain_name.get(_plain(name))
    if known is None:
        near = difflib.get_close_matches(_plain(name), by_plain_name, n=3, cutoff=0.5)
        nearest = ", ".join(by_plain_name[n] for n in near) or "efficientnet_lite0, mobilenet_v2, resnet50"
        raise ModelError(f"there is no backbone {name!r}; the nearest names are {nearest}")
    return _REGISTRY[known]


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _from_keras_applications(name: str) -> Backbone:
    class_name, size, scaling = _KERAS_APPLICATIONS[name]
    constructor = getattr(keras.applications, class_name)
    return Backbone(
        name=name,
        image_size_px=size,
        scaling=scaling,
        build=lambda shape: constructor(include_top=False, weights=None, input_shape=shape),
        build_imagenet=lambda shape: constructor(include_top=False, weights="imagenet", input_shape=shape),
        min_image_size_px=_MIN_IMAGE_SIZE_PX.get(name, 32),
    )


def _efficientnet_lite(name: str) -> Backbone:
    return Backbone(
        name=name,
        image_size_px=efficientnet_lite.VARIANTS[name].image_size_px,
        scaling=EFFICIENTNET_LITE,
        build=lambda shape: efficientnet_lite.build(name, shape),
        load_bundled=efficientnet_lite.load_bundled_weights,
    )


_REGISTRY: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in [
        *(_efficientnet_lite(name) for name in efficientnet_lite.VARIANTS),
        *(_from_keras_applications(name) for name in _KERAS_APPLICATIONS),
    ]
}
