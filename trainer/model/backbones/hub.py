"""The image classifiers of keras-hub as backbones: `model.backbone: hub:resnet_50_imagenet`, with the extra `hub`.

A preset says what pixels it wants in its image converter, which does `x * scale + offset`.
"""

import functools
from typing import Any

import keras
import numpy as np

from trainer.errors import ModelError
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.headless import without_head
from trainer.model.backbones.scaling import PixelScaling

PREFIX = "hub:"
_DEFAULT_IMAGE_SIZE_PX = 224


def open_backbone(name: str) -> Backbone:
    """Open the preset after "hub:", a name or a folder. Its weights are fetched only when they are loaded.

    Raises:
        ModelError: keras-hub is not installed, or has no such preset of an image classifier.
    """
    preset = name.removeprefix(PREFIX)
    hub = _import_keras_hub(name)
    try:
        converter = hub.layers.ImageConverter.from_preset(preset)
    except Exception as e:  # kagglehub and its kin raise of everything
        raise _refusal(name, e) from e
    size = converter.image_size or (_DEFAULT_IMAGE_SIZE_PX,) * 2
    return Backbone(
        name=name,
        image_size_px=int(size[0]),
        scaling=_scaling_of(converter),
        build=lambda shape: _build(name, shape, load_weights=False),
        load_bundled=lambda network: network.set_weights(
            _build(name, tuple(network.input_shape[1:]), load_weights=True).get_weights()
        ),
    )


def _import_keras_hub(name: str) -> Any:
    try:
        import keras_hub
    except ImportError as e:
        raise ModelError(
            f"model.backbone is {name}, and keras-hub cannot be imported ({e}); install it with "
            "pip install 'trainer[hub]'"
        ) from None
    return keras_hub


def _build(name: str, shape: tuple[int, int, int], *, load_weights: bool) -> Any:
    """Build the network of the preset without its head, with random weights or its own."""
    hub = _import_keras_hub(name)
    from_preset = functools.partial(
        hub.models.ImageClassifier.from_preset,
        name.removeprefix(PREFIX),
        num_classes=2,  # of the head, which is cut off
        load_weights=load_weights,
        dtype=keras.config.dtype_policy().name,
    )
    try:
        try:
            classifier = from_preset(image_shape=shape)
        except (TypeError, ValueError):  # some say their size in another way, or have only one
            classifier = from_preset()
    except Exception as e:
        raise _refusal(name, e) from e
    if len(classifier.backbone.output_shape) != 4:
        # Their layers keep dropout inside, where no mask can be keyed by example, and cannot all be copied.
        raise ModelError(
            f"{name} is a transformer ({type(classifier.backbone).__name__}); of keras-hub, networks with features of "
            "height, width and channels are taken, such as hub:resnet_50_imagenet"
        )
    network = without_head(classifier, origin=name)
    takes = tuple(network.input_shape[1:])
    if None in takes:
        return keras.models.clone_model(network, input_tensors=keras.Input(shape)) if not load_weights else network
    if takes != shape:
        raise ModelError(f"{name} takes images of {takes[0]} px; use --set model.image_size_px={takes[0]}")
    return network


def _scaling_of(converter: Any) -> PixelScaling:
    def triple(value: Any, default: float) -> tuple[float, float, float]:
        r, g, b = np.broadcast_to(np.asarray(default if value is None else value, np.float64).reshape(-1), (3,))
        return float(r), float(g), float(b)

    return PixelScaling(scale=triple(converter.scale, 1.0), offset=triple(converter.offset, 0.0))


def _refusal(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"the preset {name} could not be had as an image classifier ({' '.join(str(error).split())[:300]}); check its "
        "name in the list of keras-hub's presets, or, without a network, give the folder of a saved preset"
    )
