"""The last layer of a whole classifier: the one that makes a logit a class of the features before it."""

from typing import Any, Literal, NamedTuple

import keras

from trainer.model.backbones.headless import input_of

Activation = Literal["linear", "softmax", "sigmoid"]
_ACTIVATIONS: tuple[Activation, ...] = ("linear", "softmax", "sigmoid")


class LastLayer(NamedTuple):
    """A dense layer on features [batch, channels], and what is done to its logits."""

    dense: Any
    features: Any
    activation: Activation

    @property
    def num_outputs(self) -> int:
        return int(self.dense.units)


def find_last_layer(model: Any) -> LastLayer | None:
    """The last layer of `model`, a functional or sequential one; None where it does not end with a dense layer.

    An activation behind it, and networks around it, are looked through.
    """
    model = getattr(model, "_functional", model)
    if len(getattr(model, "outputs", None) or []) != 1:
        return None
    return _find(model.outputs[0])


def up_to_last_layer(model: Any, last: LastLayer) -> Any:
    """`model` without its last layer, with the same layers and weights."""
    model = getattr(model, "_functional", model)
    return keras.Model(model.inputs[0], last.features, name=model.name)


def _find(tensor: Any) -> LastLayer | None:
    activation: Activation = "linear"
    while True:
        operation = tensor._keras_history.operation
        if isinstance(operation, keras.Model):
            return _find_within(operation, tensor, activation)
        own = _activation_of(operation)
        if own is None or "linear" not in (own, activation):
            return None
        activation = own if activation == "linear" else activation
        features = input_of(operation, tensor)
        if isinstance(operation, keras.layers.Dense):
            return LastLayer(operation, features, activation) if len(features.shape) == 2 else None
        tensor = features


def _find_within(operation: Any, output: Any, activation: Activation) -> LastLayer | None:
    """The last layer of a network that is itself called in another."""
    network = getattr(operation, "_functional", operation)
    found = find_last_layer(network)
    if found is None or "linear" not in (found.activation, activation):
        return None
    within = keras.Model(network.inputs[0], found.features, name=operation.name)
    features = within(input_of(operation, output))
    return LastLayer(found.dense, features, found.activation if activation == "linear" else activation)


def _activation_of(operation: Any) -> Activation | None:
    """Of a dense layer or of one that is nothing but an activation; None for others, and for others of them."""
    if isinstance(operation, keras.layers.Softmax):
        return "softmax" if operation.axis in (-1, 1) else None
    if type(operation) is keras.layers.Dense or isinstance(operation, keras.layers.Activation):
        return next((name for name in _ACTIVATIONS if operation.activation is keras.activations.get(name)), None)
    return None
