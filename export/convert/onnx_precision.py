"""Convert the float32 ONNX file to float16, int8 with calibration, or dynamic int8.

All of them take and return float32 like the original, so that one client serves them all. The output is
deterministic.
"""

import collections
import copy
import logging
import math
import pathlib
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
from trainer.system import in_use

_BATCH_SIZE = 32
# The first opset with 16-bit QuantizeLinear.
_INT16_OPSET = 21
# On processors with AVX2 and without VNNI, 8-bit products saturate in pairs, so that a file with 8-bit weights
# answers differently there; 7-bit weights answer the same everywhere. Depthwise convolutions are the exception: their
# kernels accumulate in 32 bits, and losing a bit would cost them more than layers that sum over many products.
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
_REDUCE_RANGE = True
_EIGHT_BITS = {"quant_type": QuantType.QInt8, "axis": 0, "reduce_range": False}


def to_float16(content: bytes) -> bytes:
    """Convert weights and arithmetic to float16 (ONNX Runtime on the CPU computes in float32).

    The nodes with the fewest weights stay in float32, see `smallest`.
    """
    model = onnx.load_from_string(content)
    num_weights = {name: num for name, num in _num_weights(model).items() if num}
    with warnings.catch_warnings():
        # Weights beyond the float16 range are clipped with a warning; the gate judges the result.
        warnings.filterwarnings("ignore", message="the float32 number")
        model = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=sorted(smallest(num_weights, SHARE_IN_FULL))
        )
    _merge_repeated(model)
    # The converter appends the cast of the input at the end of the node list.
    OnnxModel(model).topological_sort(is_deterministic=True)
    return _finished(model)


def to_int8(content: bytes, calibration: Pixels, *, activation_bits: int = 8, share_in_float: float = 0.0) -> bytes:
    """Quantise to QDQ format: per-channel 8-bit weights (see _REDUCE_RANGE), `activation_bits` activations.

    `calibration` are training images, [n, size, size, 3], to take tensor ranges from. With 16 activation bits ONNX
    Runtime on the CPU computes in float32. For `share_in_float` see `Quantisation`.
    """
    float_model = onnx.load_from_string(content)
    if activation_bits == 16:
        float_model = onnx.version_converter.convert_version(float_model, _INT16_OPSET)
    # The quantiser wants inferred shapes and folded constants, which `to_onnx` has provided.
    add_pre_process_metadata(float_model)
    images = span_full_range(calibration)
    eight_bits = {name: [_EIGHT_BITS] for name in _depthwise_weights(float_model)}
    with in_use.scratch_folder() as directory:
        path = directory / "int8.onnx"

        def quantise(excluded: list[str]) -> onnx.ModelProto:
            with _quiet():
                quantize_static(
                    # It modifies its argument.
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
    """Quantise weights to 8 bits and activations at run time, without calibration."""
    float_model = onnx.load_from_string(content)
    add_pre_process_metadata(float_model)
    with in_use.scratch_folder() as directory, _quiet():
        path = directory / "dynamic.onnx"
        quantize_dynamic(float_model, path, per_channel=True, reduce_range=_REDUCE_RANGE)
        return _finished(onnx.load(path))


def _merge_repeated(model: onnx.ModelProto) -> None:
    """Keep one of the nodes with equal outputs: the converter adds a Cast for every reader of a tensor."""
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
    """Return the names of depthwise kernels, [channels, 1, height, width]."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kernels = {n.input[1]: n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in shapes}
    groups = {name: next((a.i for a in n.attribute if a.name == "group"), 1) for name, n in kernels.items()}
    return [name for name in kernels if groups[name] == shapes[name][0] > 1 == shapes[name][1]]


def _num_weights(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of weights by node name."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    return {node.name: sum(sizes.get(name, 0) for name in node.input) for node in model.graph.node}


def _sensitivity(quantised: pathlib.Path, images: Pixels) -> tuple[dict[str, float], dict[str, set[str]]]:
    """Return, by node name, the signal-to-noise ratio of its quantised output, and the nodes that read it."""
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
    # [batch, channels, height, width], or channels last.
    return signal_to_noise(exact, quantised, channel_axis=1 if exact.ndim == 4 else -1)


def _readers(nodes: Any) -> dict[str, set[str]]:
    """Return, by node name, the names of its readers, looking through Q/DQ pairs."""
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
    """Feeds `images` to the quantiser in batches."""

    def __init__(self, images: Pixels) -> None:
        starts = range(0, len(images), _BATCH_SIZE)
        self._batches: Iterator[Any] = ({IMAGES: images[i : i + _BATCH_SIZE].astype(np.float32)} for i in starts)

    def get_next(self) -> Any:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's log, which goes to the root logger and advises its developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
