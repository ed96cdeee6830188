"""Decode TensorFlow Serving's REST JSON to tensors by the model's signature; `rest.encoding` is the inverse.

Format: https://www.tensorflow.org/tfx/serving/api_rest, and tensorflow_serving/util/json_tensor.cc for details. One
difference, stricter: text after the JSON document is an error.
"""

import base64
import binascii
import dataclasses
import enum
import itertools
import json
from typing import Any

import numpy as np

from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array, SignatureSpec, TensorSpec

_SHOWN_CHARS = 80

_INTEGER_TYPES: dict[str, Any] = {
    "DT_INT8": np.int8,
    "DT_UINT8": np.uint8,
    "DT_INT16": np.int16,
    "DT_INT32": np.int32,
    "DT_UINT32": np.uint32,
    "DT_INT64": np.int64,
    "DT_UINT64": np.uint64,
}
_FLOAT_TYPES: dict[str, Any] = {"DT_FLOAT": np.float32, "DT_DOUBLE": np.float64}


class Format(enum.Enum):
    """The layout of tensors in a request and its answer."""

    ROW = "instances"
    COLUMNAR = "inputs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The parsed body of a `:predict` call; decoding its tensors needs the signature."""

    signature_name: str | None
    format: Format
    values: Any


def parse_predict_request(body: bytes) -> PredictRequest:
    """Parse the body of a request, except for its tensors. Raises RequestError (400)."""
    document = parse_json_object(body)
    signature_name = parse_signature_name(document)
    if "instances" in document and "inputs" in document:
        raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(f"Expecting 'instances' to be an list/array, not {show(instances)}")
        if not instances:
            raise invalid("No values in 'instances' array")
        return PredictRequest(signature_name=signature_name, format=Format.ROW, values=instances)
    if "inputs" in document:
        return PredictRequest(signature_name=signature_name, format=Format.COLUMNAR, values=document["inputs"])
    raise invalid("Missing 'inputs' or 'instances' key")


def parse_signature_name(document: dict[str, Any]) -> str | None:
    """Return the requested signature name; None is the default. Raises RequestError (400)."""
    signature_name = document.get("signature_name")
    if "signature_name" in document and not isinstance(signature_name, str):
        raise invalid(f"'signature_name' key must be a string value, not {show(signature_name)}")
    return signature_name


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; NaN and Infinity are numbers, as in TensorFlow Serving. Raises RequestError (400)."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise invalid(f"JSON Parse error: {e}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    return document


def decode_inputs(request: PredictRequest, signature: SignatureSpec) -> dict[str, Array]:
    """Decode the tensors of a request by input name, with the signature's dtypes and the sent shapes.

    Strings are arrays of `bytes` objects. Raises RequestError (400).
    """
    columns = _columns_of_rows if request.format is Format.ROW else _columns_of_inputs
    return {
        name: _decode_tensor(name, value, signature)
        for name, value in columns(request.values, list(signature.inputs)).items()
    }


def _columns_of_rows(instances: list[Any], names: list[str]) -> dict[str, list[Any]]:
    named = [isinstance(item, dict) and not is_base64(item) for item in instances]
    if not any(named):
        if len(names) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input tensors required: "
                + ",".join(names)
            )
        return {names[0]: instances}
    for index, (item, is_named) in enumerate(zip(instances, named, strict=True)):
        if not is_named:
            raise invalid(f"Expecting object but got {show(item)} at item {index} of input list")
        if set(item) != set(names):
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: {show(item)} "
                f"keys must be equal to: {','.join(names)}"
            )
    return {name: [item[name] for item in instances] for name in names}


def _columns_of_inputs(inputs: Any, names: list[str]) -> dict[str, Any]:
    if not isinstance(inputs, dict) or is_base64(inputs):
        if len(names) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required: "
                + ",".join(names)
            )
        return {names[0]: inputs}
    for name in names:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: inputs[name] for name in names}


def _decode_tensor(name: str, value: Any, signature: SignatureSpec) -> Array:
    shape, leaves = _flatten(name, value)
    return _convert(name, leaves, signature.inputs[name]).reshape(shape)


def _flatten(name: str, value: Any) -> tuple[tuple[int, ...], list[Any]]:
    # Level by level without recursion: a batch of images is a million numbers, and this loops in C.
    shape: list[int] = []
    level = [value]
    while level and set(map(type, level)) == {list}:
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise invalid(
                f"input {name!r} is ragged: lists of sizes {min(sizes)} and {max(sizes)} at level {len(shape)}; "
                "all lists of a level must be of one size"
            )
        shape.append(sizes.pop())
        level = list(itertools.chain.from_iterable(level))
    if list in set(map(type, level)):
        other = next(item for item in level if not isinstance(item, list))
        raise invalid(f"input {name!r} is ragged: JSON Value: {show(other)} found beside a list at level {len(shape)}")
    return tuple(shape), level


def _convert(name: str, leaves: list[Any], spec: TensorSpec) -> Array:
    if spec.dtype == "DT_STRING":
        return object_array([decode_string(name, leaf) for leaf in leaves])
    if spec.dtype == "DT_BOOL":
        _check_types(name, leaves, {bool}, spec)
        return np.array(leaves, dtype=np.bool_)
    if spec.dtype in _INTEGER_TYPES:
        _check_types(name, leaves, {int}, spec)
        return _convert_integers(name, leaves, spec)
    if spec.dtype in _FLOAT_TYPES:
        _check_types(name, leaves, {int, float}, spec)
        return _convert_floats(name, leaves, spec)
    raise RequestError(Code.UNIMPLEMENTED, f"Conversion of JSON Value for input {name!r} to type: {spec.dtype}")


def _convert_integers(name: str, leaves: list[int], spec: TensorSpec) -> Array:
    dtype = _INTEGER_TYPES[spec.dtype]
    limits = np.iinfo(dtype)
    if leaves and not (limits.min <= min(leaves) and max(leaves) <= limits.max):
        wrong = min(leaves) if min(leaves) < limits.min else max(leaves)
        raise invalid(f"input {name!r}: {show(wrong)} is outside the range of {_type_name(spec)}")
    return np.array(leaves, dtype=dtype)


def _convert_floats(name: str, leaves: list[float], spec: TensorSpec) -> Array:
    try:
        exact = np.array(leaves, dtype=np.float64)
    except OverflowError:
        raise invalid(f"input {name!r} holds a number outside the range of {_type_name(spec)}") from None
    with np.errstate(over="ignore"):
        array = exact.astype(_FLOAT_TYPES[spec.dtype])
    overflown = np.isinf(array) & np.isfinite(exact)
    if overflown.any():
        raise invalid(f"input {name!r}: {exact[overflown][0]} is outside the range of {_type_name(spec)}")
    return array


def _check_types(name: str, leaves: list[Any], admitted: set[type], spec: TensorSpec) -> None:
    # Exact types: in Python True is an int, in the protocol it is not a number.
    if set(map(type, leaves)) <= admitted:
        return
    wrong = next(leaf for leaf in leaves if type(leaf) not in admitted)
    raise invalid(f"input {name!r}: JSON Value: {show(wrong)} is not of expected type: {_type_name(spec)}")


def decode_string(name: str, leaf: Any) -> bytes:
    """Decode a JSON string or base64 to bytes. Raises RequestError (400)."""
    if isinstance(leaf, str):
        # A lone surrogate such as "\ud800" is valid JSON without a UTF-8 encoding.
        try:
            return leaf.encode()
        except UnicodeEncodeError as e:
            raise invalid(f"input {name!r}: {show(leaf)} is not valid text ({e.reason})") from None
    if not is_base64(leaf):
        raise invalid(
            f"input {name!r}: JSON Value: {show(leaf)} is not of expected type: string; "
            'give text, or bytes as {"b64": "..."}'
        )
    # Like absl::Base64Unescape: line breaks are skipped, padding is optional.
    text = "".join(leaf["b64"].split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as e:
        raise invalid(f"input {name!r}: unable to base64 decode {show(text)}: {e}") from None


def is_base64(value: Any) -> bool:
    """Return whether a JSON value is bytes in TensorFlow Serving's form, {"b64": "..."}."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def object_array(items: list[Any]) -> Array:
    """Return an array of objects, [len(items)]."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _type_name(spec: TensorSpec) -> str:
    return spec.dtype.removeprefix("DT_").lower()


def show(value: Any) -> str:
    """Return the beginning of a JSON value, for an error message."""
    # Incrementally, so that an error about a large tensor does not serialise all of it.
    text = "".join(itertools.islice(json.JSONEncoder().iterencode(value), _SHOWN_CHARS))
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
