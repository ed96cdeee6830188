"""Swapping single layers of a network for others that take the same input and hold the same weights."""

from collections.abc import Callable
from typing import Any

import keras


def replace_layers(model: Any, replacement: Callable[[Any], Any | None]) -> Any:
    """`model`, a functional one, with new weights and with each layer for which `replacement` gives another one; the
    same object where it gives none. Names, the order of the weights and networks within the network stay.
    """
    replacements = {layer.name: new for layer in model._flatten_layers() if (new := replacement(layer)) is not None}
    if not replacements:
        return model

    def clone(layer: Any) -> Any:
        if layer.name in replacements:
            return replacements[layer.name]
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone, recursive=True)
