"""Multiply-adds of a network for one image, from the shapes of its layers.

What papers on vision count as FLOPs: one for each multiplication of a weight with a value of an image. Additions of
biases, normalisation, activations and pooling are left out; they are a few percent.
"""

import math
from typing import Any

import keras

from trainer.system.private_api.keras_graph import calls_of


def count_multiply_adds(network: Any) -> int:
    """Count those of a functional or sequential Keras model with a fixed input size, for a batch of one.

    Raises ValueError for a network without a graph, or one that takes images of any size.
    """
    calls = calls_of(network)
    if None in network.input_shape[1:]:
        raise ValueError(f"{network.name} has no fixed input size, so that its work cannot be counted")
    return sum(_of_call(call.operation, call.inputs, call.outputs) for call in calls)


def _of_call(layer: Any, inputs: list[Any], outputs: list[Any]) -> int:
    layers = keras.layers
    if isinstance(layer, keras.Model):
        return count_multiply_adds(layer)
    if isinstance(layer, layers.SeparableConv2D):
        depthwise, pointwise = (_size(kernel) for kernel in (layer.depthwise_kernel, layer.pointwise_kernel))
        return (depthwise + pointwise) * _num_places(layer, outputs[0])
    if isinstance(layer, layers.Conv2DTranspose):
        return _size(layer.kernel) * _num_places(layer, inputs[0])
    if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
        # A kernel [height, width, input channels of a group, filters] is applied once at each place of the output.
        return _size(layer.kernel) * _num_places(layer, outputs[0])
    if isinstance(layer, layers.Dense):
        return int(layer.kernel.shape[0]) * int(math.prod(outputs[0].shape[1:]))
    return 0


def _num_places(layer: Any, tensor: Any) -> int:
    shape = tensor.shape[1:3] if layer.data_format == "channels_last" else tensor.shape[2:4]
    return int(math.prod(shape))


def _size(kernel: Any) -> int:
    return int(math.prod(kernel.shape))
