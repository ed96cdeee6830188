"""Find the last layer of a whole classifier, which turns features into one logit for each class."""

from typing import Any, Literal, NamedTuple

import keras

from trainer.system.private_api.keras_graph import Call, as_functional, call_that_made, calls_of

Activation = Literal["linear", "softmax", "sigmoid"]
_ACTIVATIONS: tuple[Activation, ...] = ("linear", "softmax", "sigmoid")


class LastLayer(NamedTuple):
    """A dense layer on features [batch, channels], with the activation behind it."""

    dense: Any
    features: Any
    activation: Activation

    @property
    def num_outputs(self) -> int:
        return int(self.dense.units)


def find_last_layer(model: Any) -> LastLayer | None:
    """Return the last layer of a functional or sequential `model`; None where it does not end with a dense layer.

    An activation behind it, and networks around it, are looked through.
    """
    if len(getattr(model, "outputs", None) or []) != 1:
        return None
    return _find(model.outputs[0], calls_of(model))


def up_to_last_layer(model: Any, last: LastLayer) -> Any:
    """Return `model` without its last layer, with the same layers and weights."""
    return keras.Model(model.inputs[0], last.features, name=model.name)


def _find(tensor: Any, calls: list[Call]) -> LastLayer | None:
    activation: Activation = "linear"
    while True:
        call = call_that_made(tensor, calls)
        operation = call.operation
        if isinstance(operation, keras.Model):
            return _find_within(call, activation)
        own = _activation_of(operation)
        if own is None or "linear" not in (own, activation):
            return None
        activation = own if activation == "linear" else activation
        features = call.inputs[0]
        if isinstance(operation, keras.layers.Dense):
            return LastLayer(operation, features, activation) if len(features.shape) == 2 else None
        tensor = features


def _find_within(call: Call, activation: Activation) -> LastLayer | None:
    """Return the last layer of a network that is itself called in another."""
    network = as_functional(call.operation)
    found = find_last_layer(network)
    if found is None or "linear" not in (found.activation, activation):
        return None
    within = keras.Model(network.inputs[0], found.features, name=network.name)
    features = within(call.inputs[0])
    return LastLayer(found.dense, features, found.activation if activation == "linear" else activation)


def _activation_of(operation: Any) -> Activation | None:
    """Return the activation of a dense layer, or of one that is only an activation; None for all others."""
    if isinstance(operation, keras.layers.Softmax):
        return "softmax" if operation.axis in (-1, 1) else None
    if type(operation) is keras.layers.Dense or isinstance(operation, keras.layers.Activation):
        return next((name for name in _ACTIVATIONS if operation.activation is keras.activations.get(name)), None)
    return None
