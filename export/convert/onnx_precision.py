"""The float32 ONNX file in fewer bits: float16, int8 with scales from calibration, int8 with scales found at run time.

All of them take and give float32 like the float32 file, so that one client serves them all; the conversion is their
first node. The same bytes come out for the same bytes in.
"""

import collections
import copy
import logging
import math
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.qdq_loss_debug import (
    collect_activations,
    create_activation_matching,
    modify_model_output_intermediate_tensors,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export.convert.quantization import NUM_RANKING_IMAGES, SHARE_IN_FULL, most_sensitive, signal_to_noise, smallest
from export.convert.to_tflite import span_full_range
from export.files.signature import IMAGES
from export.runtime.samples import Pixels

_BATCH_SIZE = 32
# The first that has QuantizeLinear to 16 bits.
_INT16_OPSET = 21
# On processors with AVX2 and without VNNI, products of 8 by 8 bits saturate in pairs: a file with weights of 8 bits
# answers differently there. With 7 bits it answers the same everywhere. Depthwise convolutions are the exception: their
# kernels add up in 32 bits, and 7 bits would cost them more than other layers, of whose products more even out.
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
_REDUCE_RANGE = True
_EIGHT_BITS = {"quant_type": QuantType.QInt8, "axis": 0, "reduce_range": False}


def to_float16(content: bytes) -> bytes:
    """Weights and arithmetic of 16 bits, where the runtime has it (ONNX Runtime on the CPU computes in float32).

    The nodes with the smallest weights stay in float32, see `smallest`.
    """
    model = onnx.load_from_string(content)
    num_weights = {name: num for name, num in _num_weights(model).items() if num}
    with warnings.catch_warnings():
        # A weight beyond the range of float16 is clipped with a warning; the gate judges what comes of it.
        warnings.filterwarnings("ignore", message="the float32 number")
        model = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=sorted(smallest(num_weights, SHARE_IN_FULL))
        )
    _merge_repeated(model)
    # It appends the conversion of the input at the end of the list.
    OnnxModel(model).topological_sort(is_deterministic=True)
    return _finished(model)


def to_int8(content: bytes, calibration: Pixels, *, activation_bits: int = 8, share_in_float: float = 0.0) -> bytes:
    """QDQ: weights of 8 bits (see _REDUCE_RANGE) with a scale for each channel, activations of `activation_bits`.

    activation_bits: 8, or 16, which ONNX Runtime on the CPU computes in float32.

    calibration: [n, size, size, 3], training images from which every tensor's range is taken.
    share_in_float: see `Quantisation`.
    """
    float_model = onnx.load_from_string(content)
    if activation_bits == 16:
        float_model = onnx.version_converter.convert_version(float_model, _INT16_OPSET)
    # The quantiser asks for shape inference and folded constants, which `to_onnx` has seen to.
    add_pre_process_metadata(float_model)
    images = span_full_range(calibration)
    eight_bits = {name: [_EIGHT_BITS] for name in _depthwise_weights(float_model)}
    with tempfile.TemporaryDirectory(prefix="trainer-export-") as directory:
        path = pathlib.Path(directory, "int8.onnx")

        def quantise(excluded: list[str]) -> onnx.ModelProto:
            with _quiet():
                quantize_static(
                    # It changes the model that it is given.
                    copy.deepcopy(float_model),
                    path,
                    _Reader(images),
                    per_channel=True,
                    reduce_range=_REDUCE_RANGE and activation_bits == 8,
                    activation_type=QuantType.QInt16 if activation_bits == 16 else QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=excluded,
                    extra_options={"TensorQuantOverrides": eight_bits},
                )
            return onnx.load(path)

        model = quantise([])
        if share_in_float:
            decibels, readers = _sensitivity(path, images[:NUM_RANKING_IMAGES])
            num_weights = _num_weights(float_model)
            model = quantise(most_sensitive(decibels, share_in_float, readers=readers, num_weights=num_weights))
    return _finished(model)


def to_dynamic(content: bytes) -> bytes:
    """Weights of 8 bits; activations are quantised by the range that they have at run time, without calibration."""
    float_model = onnx.load_from_string(content)
    add_pre_process_metadata(float_model)
    with tempfile.TemporaryDirectory(prefix="trainer-export-") as directory, _quiet():
        path = pathlib.Path(directory, "dynamic.onnx")
        quantize_dynamic(float_model, path, per_channel=True, reduce_range=_REDUCE_RANGE)
        return _finished(onnx.load(path))


def _merge_repeated(model: onnx.ModelProto) -> None:
    """Leaves one of the nodes that give the same tensor: the converter makes a Cast anew for each that reads it."""
    for repeated in (model.graph.node, model.graph.value_info):
        seen: set[tuple[str, ...]] = set()
        for entry in list(repeated):
            names = tuple(entry.output) if isinstance(entry, onnx.NodeProto) else (entry.name,)
            if names in seen:
                repeated.remove(entry)
            seen.add(names)


def _finished(model: onnx.ModelProto) -> bytes:
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _depthwise_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the kernels [channels, 1, height, width] of which each reads one channel."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kernels = {n.input[1]: n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in shapes}
    groups = {name: next((a.i for a in n.attribute if a.name == "group"), 1) for name, n in kernels.items()}
    return [name for name in kernels if groups[name] == shapes[name][0] > 1 == shapes[name][1]]


def _num_weights(model: onnx.ModelProto) -> dict[str, int]:
    """By the name of a node."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    return {node.name: sum(sizes.get(name, 0) for name in node.input) for node in model.graph.node}


def _sensitivity(quantised: pathlib.Path, images: Pixels) -> tuple[dict[str, float], dict[str, set[str]]]:
    """By the name of a node, the signal to noise of its output when it is quantised, and the nodes that read it."""
    augmented = quantised.with_name("augmented.onnx")
    with _quiet():
        modify_model_output_intermediate_tensors(quantised, augmented)
        matching = create_activation_matching(collect_activations(str(augmented), _Reader(images)))
    nodes = onnx.load(quantised).graph.node
    makers = {output: node.name for node in nodes for output in node.output}
    decibels = {
        makers[tensor]: float(np.mean([_decibels(*pair) for pair in zip(m["pre_qdq"], m["post_qdq"], strict=True)]))
        for tensor, m in matching.items()
        if tensor in makers
    }
    return decibels, _readers(nodes)


def _decibels(exact: Any, quantised: Any) -> float:
    # [batch, channels, height, width], or the channels last.
    return signal_to_noise(exact, quantised, channel_axis=1 if exact.ndim == 4 else -1)


def _readers(nodes: Any) -> dict[str, set[str]]:
    """By the name of a node, the names of those that its output goes to, past the pair that quantises it."""
    by_input: dict[str, list[Any]] = collections.defaultdict(list)
    for node in nodes:
        for tensor in node.input:
            by_input[tensor].append(node)

    def follow(node: Any) -> Iterator[str]:
        for reader in (r for tensor in node.output for r in by_input[tensor]):
            if reader.op_type in ("QuantizeLinear", "DequantizeLinear"):
                yield from follow(reader)
            else:
                yield str(reader.name)

    return {node.name: set(follow(node)) for node in nodes}


class _Reader(CalibrationDataReader):
    """`images` in batches, as the quantiser reads them."""

    def __init__(self, images: Pixels) -> None:
        starts = range(0, len(images), _BATCH_SIZE)
        self._batches: Iterator[Any] = ({IMAGES: images[i : i + _BATCH_SIZE].astype(np.float32)} for i in starts)

    def get_next(self) -> Any:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the quantiser logs, on the root logger, is advice to its own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
