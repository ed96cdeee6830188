"""Decode the body of an inference request over REST, and encode that of its answer.

A body is a JSON object, with the binary data of tensors after it, in the order of the tensors in the JSON; the header
Inference-Header-Content-Length then gives the length of the JSON. Specification: inference_rest.md of
kserve/open-inference-protocol, and docs/protocol/extension_binary_data.md of triton-inference-server/server.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from serving.http.json_tensors import (
    convert,
    encode_text,
    flatten,
    number_leaves,
    parse_json_object,
    show,
    write_json,
)
from serving.open_inference.binary_tensors import decode_binary, encode_binary
from serving.open_inference.datatypes import Datatype, find_datatype
from serving.open_inference.infer import (
    InferRequest,
    InputTensor,
    Parameters,
    RequestedOutput,
    bool_parameter,
    check_count,
    check_parameters,
    shorten,
    signature_parameter,
)
from serving.open_inference.shapes import check_shape
from serving.protocol.status import invalid
from serving.protocol.tensors import Array

JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
_BINARY_SIZE: Final = "binary_data_size"
_BINARY: Final = "binary_data"
_ALL_BINARY: Final = "binary_data_output"


class Answer(NamedTuple):
    """The body of an answer; `json_length` is None if no binary data follows the JSON."""

    body: bytes
    json_length: int | None


class _BinaryData:
    """The binary data behind the JSON of a request, handed out from its beginning."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._position = 0

    def take(self, name: str, size: Any) -> memoryview:
        left = len(self._content) - self._position
        if type(size) is not int or not 0 <= size <= left:
            raise invalid(
                f"input {name!r} has the {_BINARY_SIZE} {show(size)}, but {left} bytes are left after the JSON of "
                f"{JSON_LENGTH_HEADER} bytes"
            )
        self._position += size
        return self._content[self._position - size : self._position]

    def check_used(self) -> None:
        left = len(self._content) - self._position
        if left:
            raise invalid(f"{left} bytes of the body belong to no input; check each {_BINARY_SIZE}")


def decode_request(body: bytes, json_length: str | None) -> InferRequest:
    """Decode the body of a request; `json_length` is its header of that name. Raises RequestError (400)."""
    length = _parse_length(json_length, len(body))
    document = parse_json_object(body[:length])
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise invalid(f"'id' must be a string, not {show(request_id)}")
    parameters = _parameters(document, "the request")
    rest = _BinaryData(memoryview(body)[length:])
    inputs = [_input(item, rest) for item in _objects(document, "inputs")]
    rest.check_used()
    return InferRequest(
        id=request_id,
        signature_name=signature_parameter(parameters),
        inputs=inputs,
        outputs=[_output(item) for item in _objects(document, "outputs")],
        is_binary=bool(bool_parameter(parameters, _ALL_BINARY)),
    )


def _parse_length(text: str | None, body_length: int) -> int:
    if text is None:
        return body_length
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= body_length):
        raise invalid(
            f"the header {JSON_LENGTH_HEADER} is {shorten(text)!r}; expected the length of the JSON, "
            f"{body_length} at most"
        )
    return int(text)


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = document.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise invalid(f"{key!r} must be an array of objects, not {show(items)}")
    check_count(key, len(items))
    return items


def _parameters(document: Mapping[str, Any], where: str) -> Parameters:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict) or any(
        isinstance(value, list | dict) or value is None for value in parameters.values()
    ):
        raise invalid(
            f"the 'parameters' of {where} must be an object of strings, numbers and booleans, not {show(parameters)}"
        )
    check_parameters(parameters, where)
    return parameters


def _name(item: Mapping[str, Any], kind: str) -> str:
    name = item.get("name")
    if not isinstance(name, str):
        raise invalid(f"an {kind} has no 'name', or one that is no string: {show(item)}")
    return name


def _input(item: Mapping[str, Any], rest: _BinaryData) -> InputTensor:
    name = _name(item, "input")
    shown = shorten(name)
    parameters = _parameters(item, f"input {shown!r}")
    sizes, datatype_name = item.get("shape"), item.get("datatype")
    if not isinstance(sizes, list):
        raise invalid(f"input {shown!r} has no 'shape', or one that is no array")
    if not isinstance(datatype_name, str):
        raise invalid(f"input {shown!r} has no 'datatype', or one that is no string")
    shape, datatype = check_shape(shown, sizes), find_datatype(datatype_name, shown)
    if (_BINARY_SIZE in parameters) == ("data" in item):
        raise invalid(f"input {shown!r} must have either 'data' or the parameter {_BINARY_SIZE!r}")
    if _BINARY_SIZE in parameters:
        content = rest.take(shown, parameters[_BINARY_SIZE])
        decode = functools.partial(decode_binary, shown, datatype, shape, content)
    else:
        decode = functools.partial(_decode_json, shown, datatype, shape, item["data"])
    return InputTensor(name=name, datatype=datatype, decode=decode)


def _output(item: Mapping[str, Any]) -> RequestedOutput:
    name = _name(item, "output")
    parameters = _parameters(item, f"output {shorten(name)!r}")
    return RequestedOutput(name=name, is_binary=bool_parameter(parameters, _BINARY))


def _decode_json(name: str, datatype: Datatype, shape: tuple[int, ...], data: Any) -> Array:
    if not isinstance(data, list):
        raise invalid(f"input {name!r}: 'data' must be an array, not {show(data)}")
    if datatype.name == "BF16":
        raise invalid(f"input {name!r}: BF16 has no form in JSON; send it as binary data")
    found, leaves = flatten(name, data)
    if found not in (shape, (math.prod(shape),)):
        raise invalid(
            f"input {name!r} has data of shape {list(found)}, expected {list(shape)} or one array of its "
            f"{math.prod(shape)} elements"
        )
    vector = convert(name, leaves, datatype.tensorflow, type_name=datatype.name, decode_string=_decode_string)
    return vector.reshape(shape)


def _decode_string(name: str, leaf: Any) -> bytes:
    if not isinstance(leaf, str):
        raise invalid(
            f"input {name!r}: JSON Value: {show(leaf)} is not of expected type: BYTES; give text, or send bytes as "
            "binary data"
        )
    return encode_text(name, leaf)


def encode_answer(
    *,
    model_name: str,
    model_version: int,
    request: InferRequest,
    chosen: Sequence[tuple[RequestedOutput, Datatype]],
    outputs: Mapping[str, Array],
) -> Answer:
    """Encode an answer. Raises RequestError (400) if an output that was not asked for as binary has no form in JSON."""
    tensors, parts = [], []
    for output, datatype in chosen:
        array = outputs[output.name]
        tensor: dict[str, Any] = {"name": output.name, "datatype": datatype.name, "shape": list(array.shape)}
        if request.is_binary if output.is_binary is None else output.is_binary:
            parts.append(encode_binary(output.name, datatype, array))
            tensor["parameters"] = {_BINARY_SIZE: len(parts[-1])}
        else:
            tensor["data"] = _encode_json(output.name, datatype, array)
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": model_name, "model_version": str(model_version)}
    if request.id is not None:
        document["id"] = request.id
    head = write_json({**document, "outputs": tensors})
    return Answer(b"".join([head, *parts]), len(head) if parts else None)


def _encode_json(name: str, datatype: Datatype, array: Array) -> list[Any]:
    def refusal(reason: str) -> Exception:
        return invalid(
            f"output {name!r} {reason}, which JSON cannot represent; ask for it with the parameter {_BINARY!r}: true"
        )

    if datatype.name == "BF16":
        raise refusal("is BF16")
    if datatype.name == "BYTES":
        try:
            return [item.decode() for item in array.ravel()]
        except UnicodeDecodeError as e:
            raise refusal(f"is not UTF-8 ({e.reason})") from None
    if array.dtype.kind == "f":
        wrong = array[~np.isfinite(array)]
        if wrong.size:
            raise refusal(f"holds {wrong.size} of {array.size} numbers that are not finite ({wrong.flat[0]})")
    return number_leaves(array)
