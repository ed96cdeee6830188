"""Decode TensorFlow Serving's REST JSON to tensors by the model's signature; `rest.encoding` is the inverse.

Format: https://www.tensorflow.org/tfx/serving/api_rest, and tensorflow_serving/util/json_tensor.cc for details. One
difference, stricter: text after the JSON document is an error.
"""

import base64
import binascii
import dataclasses
import enum
from typing import Any

from serving.http.json_tensors import convert, encode_text, flatten, parse_json_object, show
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array, SignatureSpec

# json_tensor.cc has no conversion for them.
_NOT_IN_JSON = ("DT_UINT16", "DT_HALF")


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
    shape, leaves = flatten(name, value)
    dtype = signature.inputs[name].dtype
    if dtype in _NOT_IN_JSON:
        raise RequestError(Code.UNIMPLEMENTED, f"Conversion of JSON Value for input {name!r} to type: {dtype}")
    type_name = dtype.removeprefix("DT_").lower()
    return convert(name, leaves, dtype, type_name=type_name, decode_string=decode_string).reshape(shape)


def decode_string(name: str, leaf: Any) -> bytes:
    """Decode a JSON string or base64 to bytes. Raises RequestError (400)."""
    if isinstance(leaf, str):
        return encode_text(name, leaf)
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
