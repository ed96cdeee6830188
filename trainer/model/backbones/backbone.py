"""Describe a backbone alike for every source."""

import dataclasses
from collections.abc import Callable
from typing import Any

from trainer.model.backbones.scaling import PixelScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network without a head.

    Attributes:
        build: takes the input shape and returns a model with random weights.
        load_bundled: sets the weights that come with the backbone.
        load_last_layer: sets those of a dense layer that stands on it, where the backbone comes with one.
        build_imagenet: builds it with the weights that Keras downloads.
    """

    name: str
    image_size_px: int
    scaling: PixelScaling
    build: Callable[[tuple[int, int, int]], Any]
    min_image_size_px: int = 32
    load_bundled: Callable[[Any], None] | None = None
    load_last_layer: Callable[[Any], None] | None = None
    build_imagenet: Callable[[tuple[int, int, int]], Any] | None = None
