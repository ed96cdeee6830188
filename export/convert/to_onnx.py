"""Convert to ONNX: `images` [batch, size, size, 3] to `probabilities` [batch, classes], with a dynamic batch dimension.

Files with fewer bits are made from its output, see `onnx_precision`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx.shape_inference
import onnxruntime
import tf2onnx
from tf2onnx.handler import tf_op

from export.convert.inference_model import InferenceModel
from export.files.formats import DEFAULT_ONNX_OPSET, check_onnx_opset
from export.files.signature import PROBABILITIES
from export.runtime.runtimes import onnx_errors
from trainer.errors import ExportError
from trainer.system import in_use

_BATCH = "batch"
# tf2onnx suffixes generated names with a counter that lives as long as the process.
_COUNTER = re.compile(r"__(\d+)")


@tf_op("Erfc")
class _ErrorFunctionComplement:
    """1 - erf(x), part of Keras's GELU; neither tf2onnx nor ONNX has it as one operator."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        erf = ctx.make_node("Erf", node.input)
        one = ctx.make_const(tf2onnx.utils.make_name(node.name), np.ones((), np.float32))
        ctx.copy_shape(node.output[0], erf.output[0])
        node.type = "Sub"
        ctx.replace_inputs(node, [one.output[0], erf.output[0]])


def convert_to_onnx(inference: InferenceModel, opset: int = DEFAULT_ONNX_OPSET) -> bytes:
    """Return a shape-inferred, checked ONNX file; deterministic across processes.

    Raises:
        UsageError: tf2onnx does not write `opset`.
        ExportError: ONNX lacks an operation of the model, or the file is not valid ONNX.
    """
    check_onnx_opset(opset)
    function = inference.probabilities
    try:
        model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=opset)
        _restore_constants(model.graph, function.get_concrete_function())
        _name_batch_dimension(model.graph)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        _make_reproducible(model)
        model = _fold(model)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (ValueError, RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        first_line = str(e).strip().splitlines()[0]
        raise ExportError(f"tf2onnx cannot make a valid ONNX file of this model: {first_line}") from e
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold batch normalisation into convolutions and biases into matrix products.

    tf2onnx leaves a product and a sum behind each depthwise convolution. ONNX Runtime would fold them when it loads the
    file, but a quantiser that runs before that treats each as a layer with its own rounding.
    """
    options = onnxruntime.SessionOptions()
    # Standard operators only, and the same result on every processor.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with in_use.scratch_folder() as directory:
        path = directory / "folded.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except onnx_errors() as e:
            raise ExportError(f"ONNX Runtime cannot load what tf2onnx made of this model: {e}") from e
        folded = onnx.load(path)
    # ONNX Runtime imports every operator set it knows.
    used = {node.domain for graph in _with_subgraphs(folded.graph) for node in graph.node}
    _replace(folded.opset_import, [entry for entry in folded.opset_import if entry.domain in used])
    return folded


def _restore_constants(graph: Any, function: Any) -> None:
    """Restore constants that `function` captured, such as the means of a Normalization layer.

    tf2onnx makes them inputs of the model.
    """
    captured = {inner.name: outer for outer, inner in function.graph.captures}
    constants = [value.name for value in graph.input if value.name in captured]
    graph.initializer.extend(onnx.numpy_helper.from_array(captured[name].numpy(), name) for name in constants)
    _replace(graph.input, [value for value in graph.input if value.name not in constants])


def _name_batch_dimension(graph: Any) -> None:
    """Give the batch dimension of input and output one name, which declares them equal."""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = _BATCH
    names = [output.name for output in graph.output]
    assert names == [PROBABILITIES], f"tf2onnx renamed the output: {names}"


def _make_reproducible(model: Any) -> None:
    """Rename and sort so that generated names and arbitrary orders depend only on the graph.

    tf2onnx numbers names with a process-wide counter and iterates over sets of names, so that which of two equal
    constants names the merged one differs between processes.
    """
    graph = model.graph
    nodes = [node for one in _with_subgraphs(graph) for node in one.node]
    numbers: dict[str, str] = {}

    def renumber(name: str) -> str:
        return _COUNTER.sub(lambda m: f"__{numbers.setdefault(m[1], str(len(numbers)))}", name)

    names = {constant.name: "" for constant in graph.initializer}
    for node in nodes:
        node.name, node.doc_string = renumber(node.name), ""
        for i, name in enumerate(node.input):
            # Name a constant after its first use.
            if names.get(name) == "":
                names[name] = f"{node.name}/constant_{i}"
    for one in _with_subgraphs(graph):
        one.doc_string = ""
        for named in (*one.input, *one.output, *one.initializer, *one.value_info):
            named.name = names.get(named.name) or renumber(named.name)
        for entries in (one.initializer, one.value_info):
            _replace(entries, sorted(entries, key=lambda entry: str(entry.name)))
    for node in nodes:
        _replace(node.input, [names.get(name) or renumber(name) for name in node.input])
        _replace(node.output, [renumber(name) for name in node.output])
    for value in graph.value_info:
        for dimension in value.type.tensor_type.shape.dim:
            # A dynamic dimension that tf2onnx numbered; unnamed it is as dynamic, and shape inference loses nothing.
            if dimension.dim_param.startswith("unk__"):
                dimension.ClearField("dim_param")


def _with_subgraphs(graph: Any) -> Iterator[Any]:
    """Yield `graph` and the bodies of its conditionals and loops, which share its names."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    yield from _with_subgraphs(body)


def _replace(field: Any, values: Iterable[Any]) -> None:
    values = list(values)
    del field[:]
    field.extend(values)
