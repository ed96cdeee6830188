"""Write a frozen Keras network straight to ONNX, without tracing and converter, in a fraction of a second.

It knows the layers of the usual convolutional networks; networks with others go through tf2onnx. Images and 4-D tensors
are [b, channels, height, width] inside, as ONNX has them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from keras import layers

from trainer.model.backbones.scaling import ScalePixels
from trainer.model.layers.dropout import ExampleDropout
from trainer.system.private_api.keras_graph import Call, calls_of

OPSET = 18
# Of the ONNX file format; the newest that every runtime of this operator set reads.
IR_VERSION = 8
INPUT, OUTPUT = "images", "features"
_FLOAT = onnx.TensorProto.FLOAT


class NotWrittenError(Exception):
    """The network has a layer that this module cannot write."""


class _Graph:
    """The nodes and constants of an ONNX graph, in the order in which they are needed."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def per_channel(self, op: str, x: str, values: Any, rank: int) -> str:
        array = np.asarray(values, np.float32).reshape(-1)
        return self.add(op, [x, self.constant(array.reshape(-1, *[1] * (rank - 2)))])


def write_onnx(trunk: Any) -> bytes:
    """Write `trunk` as the content of an ONNX file: float32 `images` [b, size, size, 3] to `features` [b, ...].

    Raises:
        NotWrittenError: a layer is not known here.
    """
    graph = _Graph()
    x = graph.add("Transpose", [INPUT], perm=[0, 3, 1, 2])
    y = _write_model(graph, trunk, x)
    is_image = len(trunk.output_shape) == 4
    y = graph.add("Transpose", [y], perm=[0, 2, 3, 1]) if is_image else graph.add("Identity", [y])
    graph.nodes[-1].output[0] = OUTPUT
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        graph.nodes,
        "trunk",
        [value(INPUT, _FLOAT, ["b", *trunk.input_shape[1:]])],
        [value(OUTPUT, _FLOAT, ["b", *trunk.output_shape[1:]])],
        graph.constants,
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


def _write_model(graph: _Graph, model: Any, x: str) -> str:
    names: dict[int, str] = {id(model.inputs[0]): x}
    for node in calls_of(model):
        if not node.inputs:
            continue
        inputs = [names[id(tensor)] for tensor in node.inputs]
        names[id(node.outputs[0])] = _write_call(graph, node, inputs)
    return names[id(model.outputs[0])]


def _write_call(graph: _Graph, node: Call, inputs: list[str]) -> str:
    layer = node.operation
    if len(node.outputs) != 1:
        raise NotWrittenError(layer.name)
    if isinstance(layer, keras.Model):
        return _write_model(graph, layer, inputs[0])
    write = _WRITERS.get(type(layer))
    if write is None or getattr(layer, "data_format", "channels_last") == "channels_first":
        raise NotWrittenError(f"{layer.name} ({type(layer).__name__})")
    return write(graph, layer, inputs, len(node.inputs[0].shape))


def _scale(graph: _Graph, layer: Any, x: list[str], rank: int) -> str:
    y = graph.per_channel("Mul", x[0], layer.scale, rank)
    y = graph.per_channel("Add", y, layer.offset, rank)
    return graph.add("Gather", [y, graph.constant([2, 1, 0], np.int64)], axis=1) if layer.to_bgr else y


def _rescale(graph: _Graph, layer: Any, x: list[str], rank: int) -> str:
    return graph.per_channel("Add", graph.per_channel("Mul", x[0], layer.scale, rank), layer.offset, rank)


def _normalize(graph: _Graph, layer: Any, x: list[str], rank: int) -> str:
    scale = 1 / np.maximum(np.sqrt(np.asarray(layer.variance, np.float64)), keras.config.epsilon())
    y = graph.per_channel("Mul", x[0], scale, rank)
    return graph.per_channel("Add", y, -np.asarray(layer.mean) * scale, rank)


def _window(layer: Any, strides: Any, size: Any) -> dict[str, Any]:
    return {
        "kernel_shape": list(size),
        "strides": list(strides),
        "auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID",
    }


def _conv(graph: _Graph, layer: Any, x: list[str], _: int) -> str:
    kernel = np.asarray(layer.kernel).transpose(3, 2, 0, 1)
    return _convolve(graph, layer, x[0], kernel, groups=layer.groups)


def _depthwise(graph: _Graph, layer: Any, x: list[str], _: int) -> str:
    kernel = np.asarray(layer.kernel)
    height, width, channels, multiplier = kernel.shape
    kernel = kernel.reshape(height, width, 1, channels * multiplier).transpose(3, 2, 0, 1)
    return _convolve(graph, layer, x[0], kernel, groups=channels)


def _convolve(graph: _Graph, layer: Any, x: str, kernel: Any, *, groups: int) -> str:
    if max(layer.dilation_rate) > 1 and layer.padding == "same":
        raise NotWrittenError(f"{layer.name} (ONNX Runtime pads no dilated convolution by itself)")
    inputs = [x, graph.constant(kernel)]
    if layer.use_bias:
        inputs.append(graph.constant(np.asarray(layer.bias)))
    window = _window(layer, layer.strides, layer.kernel_size)
    y = graph.add("Conv", inputs, group=groups, dilations=list(layer.dilation_rate), **window)
    return _activate(graph, layer, y)


def _dense(graph: _Graph, layer: Any, x: list[str], rank: int) -> str:
    if rank != 2:
        raise NotWrittenError(layer.name)
    y = graph.add("MatMul", [x[0], graph.constant(np.asarray(layer.kernel))])
    if layer.use_bias:
        y = graph.add("Add", [y, graph.constant(np.asarray(layer.bias))])
    return _activate(graph, layer, y)


def _norm(graph: _Graph, layer: Any, x: list[str], rank: int) -> str:
    if layer.axis not in (-1, rank - 1):
        raise NotWrittenError(layer.name)
    scale = 1 / np.sqrt(np.asarray(layer.moving_variance, np.float64) + layer.epsilon)
    if layer.scale:
        scale *= np.asarray(layer.gamma)
    offset = -np.asarray(layer.moving_mean) * scale
    if layer.center:
        offset += np.asarray(layer.beta)
    # The runtime folds both into a convolution before them.
    return graph.per_channel("Add", graph.per_channel("Mul", x[0], scale, rank), offset, rank)


def _relu(graph: _Graph, layer: Any, x: list[str], _: int) -> str:
    if layer.negative_slope or layer.threshold:
        raise NotWrittenError(layer.name)
    if layer.max_value is None:
        return graph.add("Relu", x)
    return graph.add("Clip", [x[0], graph.constant(0.0), graph.constant(layer.max_value)])


def _activate(graph: _Graph, layer: Any, x: str) -> str:
    name = getattr(layer.activation, "__name__", "")
    if name not in _ACTIVATIONS:
        raise NotWrittenError(f"{layer.name} (activation {name})")
    return _ACTIVATIONS[name](graph, x)


_ACTIVATIONS: dict[str, Callable[[_Graph, str], str]] = {
    "linear": lambda _, x: x,
    "relu": lambda graph, x: graph.add("Relu", [x]),
    "relu6": lambda graph, x: graph.add("Clip", [x, graph.constant(0.0), graph.constant(6.0)]),
    "sigmoid": lambda graph, x: graph.add("Sigmoid", [x]),
    "silu": lambda graph, x: graph.add("Mul", [x, graph.add("Sigmoid", [x])]),
    "tanh": lambda graph, x: graph.add("Tanh", [x]),
    "hard_sigmoid": lambda graph, x: graph.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5),
    "hard_silu": lambda graph, x: graph.add("HardSwish", [x]),
}


def _zero_padding(graph: _Graph, layer: Any, x: list[str], _: int) -> str:
    (top, bottom), (left, right) = layer.padding
    return graph.add("Pad", [x[0], graph.constant([0, 0, top, left, 0, 0, bottom, right], np.int64)])


def _pool(op: str) -> Callable[[_Graph, Any, list[str], int], str]:
    return lambda graph, layer, x, _: graph.add(op, x, **_window(layer, layer.strides, layer.pool_size))


def _global_pool(op: str) -> Callable[[_Graph, Any, list[str], int], str]:
    def write(graph: _Graph, layer: Any, x: list[str], _: int) -> str:
        y = graph.add(op, x)
        return y if layer.keepdims else graph.add("Flatten", [y])

    return write


def _reshape(graph: _Graph, layer: Any, x: list[str], rank: int) -> str:
    # The one that attention over channels needs: [b, c] to [b, 1, 1, c].
    if rank != 2 or tuple(layer.target_shape[:-1]) != (1, 1):
        raise NotWrittenError(layer.name)
    return graph.add("Reshape", [x[0], graph.constant([0, -1, 1, 1], np.int64)])


def _flatten(graph: _Graph, _: Any, x: list[str], rank: int) -> str:
    return graph.add("Flatten", [graph.add("Transpose", x, perm=[0, 2, 3, 1]) if rank == 4 else x[0]])


def _concatenate(graph: _Graph, layer: Any, x: list[str], rank: int) -> str:
    if layer.axis not in (-1, rank - 1):
        raise NotWrittenError(layer.name)
    return graph.add("Concat", x, axis=1)


def _fold(op: str) -> Callable[[_Graph, Any, list[str], int], str]:
    def write(graph: _Graph, _: Any, x: list[str], __: int) -> str:
        y = x[0]
        for other in x[1:]:
            y = graph.add(op, [y, other])
        return y

    return write


_WRITERS: dict[type, Callable[[_Graph, Any, list[str], int], str]] = {
    ScalePixels: _scale,
    layers.Rescaling: _rescale,
    layers.Normalization: _normalize,
    layers.Conv2D: _conv,
    layers.DepthwiseConv2D: _depthwise,
    layers.Dense: _dense,
    layers.BatchNormalization: _norm,
    layers.ReLU: _relu,
    layers.Activation: lambda graph, layer, x, _: _activate(graph, layer, x[0]),
    layers.ZeroPadding2D: _zero_padding,
    layers.MaxPooling2D: _pool("MaxPool"),
    layers.AveragePooling2D: _pool("AveragePool"),
    layers.GlobalAveragePooling2D: _global_pool("GlobalAveragePool"),
    layers.GlobalMaxPooling2D: _global_pool("GlobalMaxPool"),
    layers.Reshape: _reshape,
    layers.Flatten: _flatten,
    layers.Concatenate: _concatenate,
    layers.Add: _fold("Add"),
    layers.Multiply: _fold("Mul"),
    layers.Dropout: lambda _, __, x, ___: x[0],
    ExampleDropout: lambda _, __, x, ___: x[0],
}
