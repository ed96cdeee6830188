"""Choose the layers of a backbone that are trained (`model.trainable`), and their learning rates (layer-wise decay)."""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

import keras

from trainer.errors import ModelError
from trainer.model.backbones.blocks import blocks_of
from trainer.system.private_api.keras_graph import all_layers


def set_trainable(network: Any, trainable: str, *, keeps_statistics: bool) -> None:
    """Set `trainable` of every layer of a backbone.

    A batch normalisation that is not trained runs in inference mode (so does Keras's), and a dropout does nothing: the
    frozen part is a fixed function. With `keeps_statistics`, no batch normalisation of the backbone is trained.

    Raises:
        ModelError: the backbone has fewer blocks, or no layer so called.
    """
    trained = {id(layer) for layer in _choose(network, trainable)}
    for layer in all_layers(network, include_self=False):
        is_statistical = isinstance(layer, keras.layers.BatchNormalization)
        if not isinstance(layer, keras.Model):
            layer.trainable = id(layer) in trained and not (keeps_statistics and is_statistical)


def is_frozen(trainable: str) -> bool:
    """Return whether nothing of the backbone is trained."""
    return trainable == "head"


def learning_rate_factors(classifier: Any, network: Any, decay: float) -> dict[int, float]:
    """Return factors of the learning rate by the id of a variable, layer-wise learning-rate decay.

    The head has 1, the last block of the backbone `decay`, the next its square (Clark et al. 2020, arXiv:2003.10555,
    appendix A).
    """
    factors = {id(variable): 1.0 for variable in classifier.variables}
    for distance, block in enumerate(reversed(blocks_of(network)), start=1):
        for layer in block:
            factors.update({id(variable): decay**distance for variable in layer.variables})
    return factors


def _choose(network: Any, trainable: str) -> Iterable[Any]:
    layers = list(all_layers(network, include_self=False))
    if trainable == "all":
        return layers
    if trainable == "head":
        return []
    kind, _, value = trainable.partition(":")
    if kind == "match":
        return _match(network, layers, value)
    if kind == "from":
        return _from(network, value)
    blocks = blocks_of(network)
    if value.endswith("%"):
        weighted = [layer for block in blocks for layer in block if layer.variables]
        num_trained = math.ceil(len(weighted) * min(float(value[:-1]), 100.0) / 100.0)
        return weighted[len(weighted) - num_trained :]
    if int(value) > len(blocks):
        raise ModelError(
            f"model.trainable is {trainable}, and {network.name} has {len(blocks)} blocks; use top:{len(blocks)} or "
            "fewer, or all"
        )
    return [layer for block in blocks[-int(value) :] for layer in block]


def _from(network: Any, name: str) -> list[Any]:
    """Return the layer so called and all after it, in the order of the computation."""
    layers = [layer for block in blocks_of(network) for outer in block for layer in all_layers(outer)]
    names = [layer.name for layer in layers]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or [layer.name for layer in layers[-3:]]
        raise ModelError(
            f"model.trainable is from:{name}, and {network.name} has no layer of that name; such as {', '.join(near)}"
        )
    return layers[names.index(name) :]


def _match(network: Any, layers: list[Any], pattern: str) -> list[Any]:
    found = [layer for layer in layers if re.fullmatch(pattern, layer.name)]
    if not any(layer.variables for layer in found):
        names = [layer.name for layer in layers if layer.variables]
        raise ModelError(
            f"model.trainable is match:{pattern}, and no layer with weights of {network.name} is called so; they are "
            f"called {', '.join(names[:3])} to {', '.join(names[-2:])}"
        )
    return found
