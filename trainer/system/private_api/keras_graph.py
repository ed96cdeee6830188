"""Read the graph of a Keras network: its calls, all its layers, and which variables are whose."""

from typing import Any, NamedTuple

import keras

Tensor = Any


class Call(NamedTuple):
    """One call of a layer in a functional network.

    Attributes:
        operation: the layer, or an operation that is none.
        training: the argument of that name, where it was given.
    """

    operation: Any
    inputs: list[Tensor]
    outputs: list[Tensor]
    training: bool | None


def calls_of(network: Any) -> list[Call]:
    """Return the calls that a functional or sequential network is made of, inputs first.

    Raises ValueError for a subclassed model, which has no graph.
    """
    nodes_by_depth = getattr(as_functional(network), "_nodes_by_depth", None)
    if not nodes_by_depth:
        raise ValueError(f"{network.name} has no graph of layers")
    return [
        Call(node.operation, node.input_tensors, node.outputs, node.arguments.kwargs.get("training"))
        for depth in sorted(nodes_by_depth, reverse=True)
        for node in nodes_by_depth[depth]
    ]


def as_functional(network: Any) -> Any:
    """Return a sequential network that knows its input as a functional one of the same layers; others as they are."""
    if isinstance(network, keras.Sequential) and hasattr(network, "inputs"):
        return keras.Model(network.inputs, network.outputs, name=network.name)
    return network


def call_that_made(tensor: Tensor, calls: list[Call]) -> Call:
    """Return the one of `calls` that has `tensor` among its outputs."""
    return next(call for call in calls if any(output is tensor for output in call.outputs))


def all_layers(layer: Any, *, include_self: bool = True) -> list[Any]:
    """Return the layers inside a network or a composite layer, however deep, and itself."""
    layers: list[Any] = layer._flatten_layers(include_self=include_self)
    return layers


def own_variables(layer: Any) -> list[Any]:
    """Return the weights of `layer` that are of no layer inside it, in the order in which Keras saves them."""
    inner = {id(variable) for other in all_layers(layer, include_self=False) for variable in other.weights}
    return [variable for variable in layer.weights if id(variable) not in inner]


def is_seed(variable: Any) -> bool:
    """Return whether a Keras variable is the state of a seed generator, as dropout has one, and no weight."""
    return str(variable.path).endswith("seed_generator_state")


class BatchNormalizationWithMoments(keras.layers.BatchNormalization):
    """A batch normalisation whose batch statistics a subclass computes."""

    def moments(self, inputs: Tensor, mask: Tensor | None, axes: list[int]) -> tuple[Tensor, Tensor]:
        """Return mean and variance [channels] of `inputs` over `axes`."""
        raise NotImplementedError

    def _moments(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.moments(inputs, mask, self._reduction_axes)
