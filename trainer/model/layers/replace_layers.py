"""Replace single layers of a network by others that take the same input and hold the same weights."""

from collections.abc import Callable
from typing import Any

import keras

from trainer.system.private_api.keras_graph import all_layers


def replace_layers(model: Any, replacement: Callable[[Any], Any | None]) -> Any:
    """Copy a functional `model` with new weights, and with each layer for which `replacement` returns another one.

    A model in which it replaces nothing is returned as it is. Names, the order of the weights and nested networks stay.
    """
    replacements = {layer.name: new for layer in all_layers(model) if (new := replacement(layer)) is not None}
    if not replacements:
        return model

    def clone(layer: Any) -> Any:
        if layer.name in replacements:
            return replacements[layer.name]
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone, recursive=True)
