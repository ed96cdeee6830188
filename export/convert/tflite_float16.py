"""Convert the weights of a float32 TFLite file to float16, each widened by an operator before use.

TensorFlow's converter does this to every constant. Here the smallest stay float32, see `smallest`.
"""

import collections
import copy
import math
from typing import Any

import numpy as np

from export.convert.quantization import SHARE_IN_FULL, smallest
from trainer.system.private_api.tensorflow_lite import (
    BufferT,
    BuiltinOperator,
    MetadataT,
    OperatorCodeT,
    OperatorT,
    TensorType,
    convert_bytearray_to_object,
    convert_object_to_bytearray,
)

# The first version of the operator that takes float16, and the first runtime with it.
_DEQUANTIZE_VERSION, _MIN_RUNTIME_VERSION = 3, (1, 15, 0)
# Lets a delegate compute in float16 and accumulate in float32, on processors that can.
_REDUCED_PRECISION = ("reduced_precision_support", b"fp16accfp32")
_LARGEST = float(np.finfo(np.float16).max)


def to_float16(content: bytes) -> bytes:
    """Return the float16 version of a float32 file; deterministic."""
    model = convert_bytearray_to_object(bytearray(content))
    (graph,) = model.subgraphs
    tensors_of: dict[int, list[int]] = collections.defaultdict(list)
    for i, tensor in enumerate(graph.tensors):
        if tensor.type == TensorType.FLOAT32 and model.buffers[tensor.buffer].data is not None:
            tensors_of[tensor.buffer].append(i)
    num_weights = {buffer: math.prod(graph.tensors[tensors[0]].shape) for buffer, tensors in tensors_of.items()}
    in_full = smallest(num_weights, SHARE_IN_FULL)
    opcode = len(model.operatorCodes)
    model.operatorCodes.append(_dequantize())
    widening = []
    for buffer in (b for b in tensors_of if b not in in_full):
        weights = np.asarray(model.buffers[buffer].data, np.uint8).view(np.float32)
        # Clip to the range, as in ONNX files; the gate judges the result.
        clipped = np.clip(weights, -_LARGEST, _LARGEST)
        model.buffers[buffer].data = clipped.astype(np.float16).view(np.uint8)
        for i in tensors_of[buffer]:
            widening.append(OperatorT())
            widening[-1].opcodeIndex, widening[-1].inputs, widening[-1].outputs = opcode, [len(graph.tensors)], [i]
            graph.tensors.append(_narrow(graph.tensors[i]))
            graph.tensors[i].buffer = 0  # by convention the empty one
    graph.operators = [*widening, *graph.operators]
    _state_what_it_needs(model)
    return bytes(convert_object_to_bytearray(model))


def _dequantize() -> Any:
    code = OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = BuiltinOperator.DEQUANTIZE
    code.version = _DEQUANTIZE_VERSION
    return code


def _narrow(tensor: Any) -> Any:
    narrow = copy.copy(tensor)
    narrow.name, narrow.type = tensor.name + b"/float16", TensorType.FLOAT16
    return narrow


def _state_what_it_needs(model: Any) -> None:
    for entry in model.metadata:
        if entry.name == b"min_runtime_version":
            data = model.buffers[entry.buffer]
            stated = tuple(int(n) for n in bytes(data.data).rstrip(b"\0").split(b"."))
            least = ".".join(str(n) for n in max(stated, _MIN_RUNTIME_VERSION)).encode()
            data.data = list(least.ljust(len(data.data), b"\0"))
    name, value = _REDUCED_PRECISION
    entry, buffer = MetadataT(), BufferT()
    entry.name, entry.buffer, buffer.data = name, len(model.buffers), list(value)
    model.buffers.append(buffer)
    model.metadata.append(entry)
