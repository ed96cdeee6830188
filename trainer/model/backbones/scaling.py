"""Scale 0-255 RGB to the pixels that a network was trained on, in one place for every backbone.

Checked in the tests against each source's own preprocessing function.
"""

import dataclasses
import math
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelScaling:
    """A scaling of pixels: `x * scale + offset` per channel in RGB order, then to BGR where `to_bgr`."""

    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    to_bgr: bool = False


@keras.saving.register_keras_serializable("trainer")
class ScalePixels(keras.layers.Layer):  # type: ignore[misc]
    """A layer that turns pixels 0-255 RGB into a backbone's, in float32 under every precision."""

    def __init__(self, scale: Any, offset: Any, to_bgr: bool, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.scale, self.offset, self.to_bgr = tuple(scale), tuple(offset), to_bgr

    def call(self, images: Any) -> Any:
        x = keras.ops.cast(images, "float32") * np.asarray(self.scale, "float32") + np.asarray(self.offset, "float32")
        return keras.ops.flip(x, axis=-1) if self.to_bgr else x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale, "offset": self.offset, "to_bgr": self.to_bgr}


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

# The four conventions of keras.applications' `preprocess_input`, and [0, 1].
ZERO_TO_255 = PixelScaling()
ZERO_TO_ONE = PixelScaling(scale=(1 / 255,) * 3)
MINUS_ONE_TO_ONE = PixelScaling(scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3)
CAFFE = PixelScaling(offset=(-123.68, -116.779, -103.939), to_bgr=True)
TORCH = PixelScaling(
    scale=tuple(1 / (255 * s) for s in _IMAGENET_STD),  # type: ignore[arg-type]
    offset=tuple(-m / s for m, s in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)),  # type: ignore[arg-type]
)
# Keras divides EfficientNet's pixels by sqrt(std) once more, in a layer that it adds only when it is asked for the
# ImageNet weights. Stated here, ahead of the network's own (x / 255 - mean) / sqrt(variance), the same network serves
# every kind of weights.
EFFICIENTNET = PixelScaling(
    scale=tuple(1 / math.sqrt(s) for s in _IMAGENET_STD),  # type: ignore[arg-type]
    offset=tuple(255 * m * (1 - 1 / math.sqrt(s)) for m, s in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True)),  # type: ignore[arg-type]
)
EFFICIENTNET_LITE = PixelScaling(scale=(1 / 128,) * 3, offset=(-127 / 128,) * 3)

# The values of `model.pixels`.
BY_NAME = {
    "0-255": ZERO_TO_255,
    "0-1": ZERO_TO_ONE,
    "-1-1": MINUS_ONE_TO_ONE,
    "caffe": CAFFE,
    "torch": TORCH,
}
