"""The backbones by name: how each is built, what pixels it wants, and where its pretrained weights come from.

A new backbone is one entry of `_REGISTRY`. Pixels come as 0-255 RGB; `PixelScaling` says what the network was
trained on, and is checked in the tests against each source's own preprocessing function.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable
from typing import Any

import keras

from trainer.errors import ModelError
from trainer.model import efficientnet_lite


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelScaling:
    """`x * scale + offset` per channel, in RGB order, then to BGR where `to_bgr`."""

    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    to_bgr: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """One entry of the registry. `build` takes the input shape and returns a model without a head."""

    name: str
    image_size_px: int
    scaling: PixelScaling
    build: Callable[[tuple[int, int, int]], Any]
    min_image_size_px: int = 32
    load_bundled: Callable[[Any], None] | None = None
    build_imagenet: Callable[[tuple[int, int, int]], Any] | None = None


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

# The four conventions of keras.applications' `preprocess_input`.
_ZERO_TO_255 = PixelScaling()
_MINUS_ONE_TO_ONE = PixelScaling(scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3)
_CAFFE = PixelScaling(offset=(-123.68, -116.779, -103.939), to_bgr=True)
_TORCH = PixelScaling(
    scale=tuple(1 / (255 * s) for s in _IMAGENET_STD),  # type: ignore[arg-type]
    offset=tuple(-m / s for m, s in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)),  # type: ignore[arg-type]
)
# Keras divides EfficientNet's pixels by sqrt(std) once more, in a layer that it adds only when it is asked for the
# ImageNet weights. Stated here, ahead of the network's own (x / 255 - mean) / sqrt(variance), the same network serves
# every kind of weights.
_EFFICIENTNET = PixelScaling(
    scale=tuple(1 / math.sqrt(s) for s in _IMAGENET_STD),  # type: ignore[arg-type]
    offset=tuple(255 * m * (1 - 1 / math.sqrt(s)) for m, s in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)),  # type: ignore[arg-type]
)
_LITE = PixelScaling(scale=(1 / 128,) * 3, offset=(-127 / 128,) * 3)

# Name: class in keras.applications, side of the images it was trained on, scaling.
_KERAS_APPLICATIONS: dict[str, tuple[str, int, PixelScaling]] = {
    **{
        f"convnext_{s.lower()}": (f"ConvNeXt{s}", 224, _ZERO_TO_255)
        for s in ("Tiny", "Small", "Base", "Large", "XLarge")
    },
    **{f"densenet{depth}": (f"DenseNet{depth}", 224, _TORCH) for depth in (121, 169, 201)},
    **{
        f"efficientnet_b{i}": (f"EfficientNetB{i}", size, _EFFICIENTNET)
        for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    },
    **{
        f"efficientnet_v2_b{i}": (f"EfficientNetV2B{i}", size, _ZERO_TO_255)
        for i, size in enumerate((224, 240, 260, 300))
    },
    "efficientnet_v2_s": ("EfficientNetV2S", 384, _ZERO_TO_255),
    "efficientnet_v2_m": ("EfficientNetV2M", 480, _ZERO_TO_255),
    "efficientnet_v2_l": ("EfficientNetV2L", 480, _ZERO_TO_255),
    "inception_resnet_v2": ("InceptionResNetV2", 299, _MINUS_ONE_TO_ONE),
    "inception_v3": ("InceptionV3", 299, _MINUS_ONE_TO_ONE),
    "mobilenet": ("MobileNet", 224, _MINUS_ONE_TO_ONE),
    "mobilenet_v2": ("MobileNetV2", 224, _MINUS_ONE_TO_ONE),
    "mobilenet_v3_large": ("MobileNetV3Large", 224, _ZERO_TO_255),
    "mobilenet_v3_small": ("MobileNetV3Small", 224, _ZERO_TO_255),
    "nasnet_large": ("NASNetLarge", 331, _MINUS_ONE_TO_ONE),
    "nasnet_mobile": ("NASNetMobile", 224, _MINUS_ONE_TO_ONE),
    **{f"resnet{depth}": (f"ResNet{depth}", 224, _CAFFE) for depth in (50, 101, 152)},
    **{f"resnet{depth}_v2": (f"ResNet{depth}V2", 224, _MINUS_ONE_TO_ONE) for depth in (50, 101, 152)},
    "vgg16": ("VGG16", 224, _CAFFE),
    "vgg19": ("VGG19", 224, _CAFFE),
    "xception": ("Xception", 299, _MINUS_ONE_TO_ONE),
}
_MIN_IMAGE_SIZE_PX = {"inception_resnet_v2": 75, "inception_v3": 75, "xception": 71}


def list_backbones() -> list[str]:
    """Every name that `find_backbone` knows, sorted."""
    return sorted(_REGISTRY)


def find_backbone(name: str) -> Backbone:
    """The backbone called `name`; case, '-' and '_' do not matter (`ResNet50` is `resnet50`).

    Raises:
        ModelError: there is none; the message names the nearest.
    """
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
        scaling=_LITE,
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
