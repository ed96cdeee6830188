"""Encode tensors to TensorFlow Serving's REST JSON; `codec` is the inverse.

One difference from tensorflow_serving/util/json_tensor.cc, stricter: NaN or infinity is an error, where that server
writes invalid JSON that strict parsers refuse.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.http.json_tensors import number_leaves, object_array, write_json
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array
from serving.rest.codec import Format

BYTES_SUFFIX = "_bytes"


def encode_outputs(outputs: Mapping[str, Array], format: Format) -> bytes:
    """Return the JSON answer to a request of `format`; a single output loses its name.

    Raises RequestError if outputs of a row request differ in batch size (400) or JSON cannot hold them (500).
    """
    if format is Format.ROW:
        _check_batch_sizes(outputs)
    columns = {name: encode_tensor(name, outputs[name]) for name in sorted(outputs)}
    answer: Any
    if len(columns) == 1:
        (answer,) = columns.values()
    elif format is Format.ROW:
        answer = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    else:
        answer = columns
    return write_json({"predictions" if format is Format.ROW else "outputs": answer})


def _check_batch_sizes(outputs: Mapping[str, Array]) -> None:
    batch_sizes = {}
    for name, array in sorted(outputs.items()):
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information; ask for it with 'inputs', not 'instances'")
        batch_sizes[name] = array.shape[0]
    if len(set(batch_sizes.values())) > 1:
        raise invalid(
            f"the outputs differ in batch size ({batch_sizes}); ask for them with 'inputs', not with 'instances'"
        )


def encode_tensor(name: str, array: Array) -> Any:
    """Convert an output to a JSON value. Raises RequestError if it is not finite (500) or has no JSON form (501)."""
    if array.dtype == object:
        encode = _encode_bytes if name.endswith(BYTES_SUFFIX) else _encode_text
        return _nest([encode(name, item) for item in array.ravel()], array.shape)
    if array.dtype.kind == "f":
        _check_finite(name, array)
    if array.dtype.kind in "biu" or array.dtype in (np.float32, np.float64):
        return _nest(number_leaves(array), array.shape)
    raise RequestError(Code.UNIMPLEMENTED, f"Failed to write JSON value for output {name!r} of type: {array.dtype}")


def _check_finite(name: str, array: Array) -> None:
    wrong = array[~np.isfinite(array)]
    if wrong.size:
        raise RequestError(
            Code.INTERNAL,
            f"output {name!r} holds {wrong.size} of {array.size} numbers that are not finite ({wrong[0]}), which JSON "
            "cannot represent; TensorFlow Serving would answer with invalid JSON",
        )


def _encode_bytes(_: str, item: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(item).decode()}


def _encode_text(name: str, item: bytes) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError as e:
        raise RequestError(
            Code.INTERNAL, f"output {name!r} is not UTF-8 ({e.reason}); name it *{BYTES_SUFFIX} when exporting"
        ) from None


def _nest(leaves: list[Any], shape: tuple[int, ...]) -> Any:
    return object_array(leaves).reshape(shape).tolist()
