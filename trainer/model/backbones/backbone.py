"""What the rest of the system knows of a backbone, whichever source it is from."""

import dataclasses
from collections.abc import Callable
from typing import Any

from trainer.model.backbones.scaling import PixelScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """`build` takes the input shape and returns a model without a head and with random weights.

    `load_bundled` sets the weights that come with the backbone; `build_imagenet` builds it with those that Keras
    downloads. `load_last_layer` sets those of a dense layer that stands on it, where the backbone comes with one.
    """

    name: str
    image_size_px: int
    scaling: PixelScaling
    build: Callable[[tuple[int, int, int]], Any]
    min_image_size_px: int = 32
    load_bundled: Callable[[Any], None] | None = None
    load_last_layer: Callable[[Any], None] | None = None
    build_imagenet: Callable[[tuple[int, int, int]], Any] | None = None
