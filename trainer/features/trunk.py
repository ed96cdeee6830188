"""Cut a classifier in two: a trunk, which is a fixed function of an image, and a tail, which learns from its features.

The cut is at the last tensor that is the only input of everything after it, and that does not depend on trained, random
or batch-dependent layers. Both parts consist of the classifier's own layers and share its variables.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from trainer.model.classifier import saved_variables
from trainer.model.layers.batch_norm import changing_statistics
from trainer.model.layers.dropout import ExampleDropout
from trainer.system.private_api.keras_graph import Call, all_layers, calls_of


class Cut(NamedTuple):
    """The two parts of a classifier.

    Attributes:
        layer: The name of the layer whose output is cached.
        trunk: Model from images [b, size, size, 3], pixels from 0 to 255, to features [b, ...].
        tail: Model from features to logits; its trainable variables are the classifier's, in the same order.
    """

    layer: str
    trunk: Any
    tail: Any

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of the features of one image."""
        return tuple(int(size) for size in self.trunk.output_shape[1:])


class GraphCut(NamedTuple):
    """A possible cut of a graph: a call of a layer, and its only output."""

    node: Call
    tensor: Any


def cut_classifier(classifier: Any) -> Cut | None:
    """Cut a functional model as deep as possible; return None if no layer with weights is before all trained ones."""
    outer = _last_cut(classifier)
    after = _following(classifier, outer)
    network = after.operation if after is not None and isinstance(after.operation, keras.Model) else None
    inner = _last_cut(network) if network is not None and not _is_for_inference(after) else None
    if inner is not None and network is not None and after is not None:
        trunk = _model(classifier.input, keras.Model(network.input, inner.tensor)(after.inputs[0]))
        rest = keras.Input(inner.tensor.shape[1:], dtype=inner.tensor.dtype)
        tail = _model(rest, _replay(classifier, after, keras.Model(inner.tensor, network.output)(rest)))
        cut: GraphCut = inner
    elif outer is not None:
        cut = outer
        trunk, tail = _model(classifier.input, cut.tensor), _model(cut.tensor, classifier.output)
    else:
        return None
    if not trunk.weights or not _are_same(tail.trainable_variables, classifier.trainable_variables):
        return None
    return Cut(cut.node.operation.name, trunk, tail)


def digest_of(trunk: Any) -> str:
    """Return the SHA-256 of what a trunk computes: its layers, their connections and its weights, without names."""
    digest = hashlib.sha256(json.dumps(list(_describe(trunk)), sort_keys=True).encode())
    for variable in saved_variables(trunk):
        array = np.ascontiguousarray(variable.numpy())
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _model(inputs: Any, outputs: Any) -> Any:
    return keras.Model(inputs, outputs)


def _last_cut(model: Any) -> GraphCut | None:
    """Find the last call whose output alone all later calls use, with only fixed calls up to it."""
    nodes = calls_of(model)
    last_use = {id(tensor): i for i, node in enumerate(nodes) for tensor in node.inputs}
    found, open_until = None, -1
    for i, node in enumerate(nodes):
        if not _is_fixed(node):
            break
        is_alone = len(node.outputs) == 1 and open_until <= i
        open_until = max([open_until, *(last_use.get(id(tensor), i) for tensor in node.outputs)])
        if is_alone and node.inputs and node.outputs[0] is not model.output:
            found = GraphCut(node, node.outputs[0])
    return found


def _is_fixed(node: Call) -> bool:
    """Return whether a call always has the same output for an image, whatever else is in the batch."""
    operation = node.operation
    if not isinstance(operation, keras.Layer):
        return True
    if operation.trainable_variables:
        return False
    if isinstance(operation, keras.Model) and _is_for_inference(node):
        return True
    layers = all_layers(operation)
    if any(isinstance(layer, keras.layers.BatchNormalization) and layer.trainable for layer in layers):
        return False
    return not any(_is_random(layer) for layer in layers) and not changing_statistics(operation)


def _is_random(layer: Any) -> bool:
    if isinstance(layer, ExampleDropout):
        return layer.rate > 0 and layer.trainable
    return any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())


def _is_for_inference(node: Call | None) -> bool:
    return node is not None and node.training is False


def _following(classifier: Any, cut: GraphCut | None) -> Call | None:
    """Return the first call after `cut`."""
    tensor = classifier.input if cut is None else cut.tensor
    return next((node for node in calls_of(classifier) if any(x is tensor for x in node.inputs)), None)


def _replay(classifier: Any, node: Call, replacement: Any) -> Any:
    """Return the classifier's output with `replacement` in place of the output of `node`."""
    if node.outputs[0] is classifier.output:
        return replacement
    rest = keras.Model(node.outputs[0], classifier.output)
    return rest(replacement)


def _are_same(some: list[Any], others: list[Any]) -> bool:
    return [id(variable) for variable in some] == [id(variable) for variable in others]


def _describe(model: Any) -> Iterator[Any]:
    nodes = calls_of(model)
    number = {id(tensor): i for i, node in enumerate(nodes) for tensor in node.outputs}
    for node in nodes:
        operation = node.operation
        if isinstance(operation, keras.Model):
            what: Any = list(_describe(operation))
        else:
            config = operation.get_config() if isinstance(operation, keras.Layer) else vars(operation)
            what = {key: _plain(value) for key, value in config.items() if key not in ("name", "trainable")}
        yield [type(operation).__name__, [number[id(tensor)] for tensor in node.inputs], what]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda other: type(other).__name__))
