"""Decode a ModelInferRequest, and fill a ModelInferResponse.

A request has its tensors in `raw_input_contents`, or each in its `contents`; the answer takes the same form. FP16 and
BF16 have no `contents`: an answer with one of them is raw. Specification: inference_grpc.md of
kserve/open-inference-protocol.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from serving.http.json_tensors import object_array
from serving.models.servable import Servable
from serving.open_inference.binary_tensors import decode_binary, encode_binary
from serving.open_inference.datatypes import Datatype, find_datatype
from serving.open_inference.infer import (
    InferRequest,
    InputTensor,
    Parameters,
    RequestedOutput,
    check_count,
    check_parameters,
    shorten,
    signature_parameter,
)
from serving.open_inference.shapes import check_shape
from serving.protocol.status import invalid
from serving.protocol.tensors import Array

# The field of InferTensorContents for each data type, and the type of its elements.
_FIELDS: Final[Mapping[str, tuple[str, Any]]] = {
    "BOOL": ("bool_contents", np.bool_),
    "INT8": ("int_contents", np.int32),
    "INT16": ("int_contents", np.int32),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "UINT8": ("uint_contents", np.uint32),
    "UINT16": ("uint_contents", np.uint32),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", np.object_),
}


def decode_request(message: Any) -> InferRequest:
    """Decode a ModelInferRequest except for its tensors. Raises RequestError (400)."""
    check_count("inputs", len(message.inputs))
    check_count("outputs", len(message.outputs))
    parameters = _parameters(message, "the request")
    is_raw = bool(message.raw_input_contents)
    if is_raw and len(message.raw_input_contents) != len(message.inputs):
        raise invalid(
            f"the request has {len(message.raw_input_contents)} raw_input_contents for {len(message.inputs)} inputs; "
            "send one for each"
        )
    raw = message.raw_input_contents if is_raw else [None] * len(message.inputs)
    return InferRequest(
        id=message.id,
        signature_name=signature_parameter(parameters),
        inputs=[_input(tensor, content) for tensor, content in zip(message.inputs, raw, strict=True)],
        outputs=[_output(output) for output in message.outputs],
        is_binary=is_raw,
    )


def _parameters(message: Any, where: str) -> Parameters:
    parameters = {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise invalid(f"the parameter {shorten(name)!r} of {where} has no value")
        parameters[name] = getattr(parameter, choice)
    check_parameters(parameters, where)
    return parameters


def _output(output: Any) -> RequestedOutput:
    _parameters(output, f"output {shorten(output.name)!r}")
    return RequestedOutput(name=output.name)


def _input(tensor: Any, raw: bytes | None) -> InputTensor:
    shown = shorten(tensor.name)
    _parameters(tensor, f"input {shown!r}")
    shape, datatype = check_shape(shown, tensor.shape), find_datatype(tensor.datatype, shown)
    if raw is None:
        decode = functools.partial(_decode_contents, shown, datatype, shape, tensor.contents)
    else:
        if tensor.HasField("contents"):
            raise invalid(
                f"input {shown!r} has 'contents' beside the raw_input_contents of the request; send one of them"
            )
        decode = functools.partial(decode_binary, shown, datatype, shape, memoryview(raw))
    return InputTensor(name=tensor.name, datatype=datatype, decode=decode)


def _decode_contents(name: str, datatype: Datatype, shape: tuple[int, ...], contents: Any) -> Array:
    if datatype.name not in _FIELDS:
        raise invalid(f"input {name!r}: {datatype.name} has no form in 'contents'; send it in raw_input_contents")
    field, element = _FIELDS[datatype.name]
    wrong = [descriptor.name for descriptor, _ in contents.ListFields() if descriptor.name != field]
    if wrong:
        raise invalid(f"input {name!r} has {wrong[0]}, expected {field} for {datatype.name}")
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        raise invalid(f"input {name!r} has {len(values)} elements, expected {math.prod(shape)} for shape {list(shape)}")
    if datatype.name == "BYTES":
        return object_array(list(values)).reshape(shape)
    wide = np.fromiter(values, element, len(values))
    narrow = wide.astype(datatype.numpy, copy=False)
    if narrow.dtype != wide.dtype and (narrow != wide).any():
        raise invalid(f"input {name!r}: {wide[narrow != wide][0]} is outside the range of {datatype.name}")
    return narrow.reshape(shape)


def fill_response(
    response: Any,
    *,
    servable: Servable,
    request: InferRequest,
    chosen: Sequence[tuple[RequestedOutput, Datatype]],
    outputs: Mapping[str, Array],
) -> None:
    """Fill a ModelInferResponse with the chosen outputs."""
    response.model_name, response.model_version = servable.model_name, str(servable.version)
    response.id = request.id or ""
    is_raw = request.is_binary or any(datatype.name not in _FIELDS for _, datatype in chosen)
    for output, datatype in chosen:
        array = outputs[output.name]
        tensor = response.outputs.add(name=output.name, datatype=datatype.name, shape=array.shape)
        if is_raw:
            response.raw_output_contents.append(encode_binary(output.name, datatype, array))
        else:
            field, _ = _FIELDS[datatype.name]
            getattr(tensor.contents, field).extend(array.ravel().tolist())
