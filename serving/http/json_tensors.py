"""Convert JSON values to arrays and numbers to JSON values, for every API whose tensors are JSON."""

import itertools
import json
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array

_SHOWN_CHARS = 80

_INTEGER_TYPES: Final[dict[str, Any]] = {
    "DT_INT8": np.int8,
    "DT_UINT8": np.uint8,
    "DT_INT16": np.int16,
    "DT_UINT16": np.uint16,
    "DT_INT32": np.int32,
    "DT_UINT32": np.uint32,
    "DT_INT64": np.int64,
    "DT_UINT64": np.uint64,
}
_FLOAT_TYPES: Final[dict[str, Any]] = {"DT_HALF": np.float16, "DT_FLOAT": np.float32, "DT_DOUBLE": np.float64}


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


def flatten(name: str, value: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of nested lists and their elements in row-major order. Raises RequestError (400)."""
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


def convert(
    name: str, leaves: list[Any], dtype: str, *, type_name: str, decode_string: Callable[[str, Any], bytes]
) -> Array:
    """Convert the elements of an input to a vector.

    Args:
        name: of the input, for messages.
        leaves: JSON values that are not lists.
        dtype: TensorFlow's name of the type, such as "DT_FLOAT".
        type_name: what the API calls the type, for messages.
        decode_string: the bytes of an element of a string tensor, called with `name` and the JSON value.

    Raises:
        RequestError: an element is not of the type (400), or the type has no form in JSON (501).
    """
    if dtype == "DT_STRING":
        return object_array([decode_string(name, leaf) for leaf in leaves])
    if dtype == "DT_BOOL":
        _check_types(name, leaves, {bool}, type_name)
        return np.array(leaves, dtype=np.bool_)
    if dtype in _INTEGER_TYPES:
        _check_types(name, leaves, {int}, type_name)
        return convert_integers(name, leaves, dtype, type_name)
    if dtype in _FLOAT_TYPES:
        _check_types(name, leaves, {int, float}, type_name)
        return _convert_floats(name, leaves, dtype, type_name)
    raise RequestError(Code.UNIMPLEMENTED, f"Conversion of JSON Value for input {name!r} to type: {dtype}")


def convert_integers(name: str, leaves: list[int], dtype: str, type_name: str) -> Array:
    """Convert integers of any size to a vector. Raises RequestError (400) for one out of range."""
    limits = np.iinfo(_INTEGER_TYPES[dtype])
    if leaves and not (limits.min <= min(leaves) and max(leaves) <= limits.max):
        wrong = min(leaves) if min(leaves) < limits.min else max(leaves)
        raise invalid(f"input {name!r}: {show(wrong)} is outside the range of {type_name}")
    return np.array(leaves, dtype=_INTEGER_TYPES[dtype])


def _convert_floats(name: str, leaves: list[float], dtype: str, type_name: str) -> Array:
    try:
        exact = np.array(leaves, dtype=np.float64)
    except OverflowError:
        raise invalid(f"input {name!r} holds a number outside the range of {type_name}") from None
    with np.errstate(over="ignore"):
        array = exact.astype(_FLOAT_TYPES[dtype])
    overflown = np.isinf(array) & np.isfinite(exact)
    if overflown.any():
        raise invalid(f"input {name!r}: {exact[overflown][0]} is outside the range of {type_name}")
    return array


def _check_types(name: str, leaves: list[Any], admitted: set[type], type_name: str) -> None:
    # Exact types: in Python True is an int, in the protocols it is not a number.
    if set(map(type, leaves)) <= admitted:
        return
    wrong = next(leaf for leaf in leaves if type(leaf) not in admitted)
    raise invalid(f"input {name!r}: JSON Value: {show(wrong)} is not of expected type: {type_name}")


def encode_text(name: str, text: str) -> bytes:
    """Encode a JSON string as UTF-8. Raises RequestError (400)."""
    # A lone surrogate such as "\ud800" is valid JSON without a UTF-8 encoding.
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise invalid(f"input {name!r}: {show(text)} is not valid text ({e.reason})") from None


def number_leaves(array: Array) -> list[Any]:
    """Return the elements of a tensor of numbers in row-major order, as JSON values."""
    if array.dtype == np.float32:
        # The shortest digits that round-trip in float32; as float64, 0.2 would be 0.20000000298023224.
        return list(map(float, map(str, array.ravel())))
    leaves: list[Any] = array.ravel().tolist()
    return leaves


def write_json(document: dict[str, Any]) -> bytes:
    """Serialise an answer, whose numbers must be finite."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


def object_array(items: list[Any]) -> Array:
    """Return an array of objects, [len(items)]."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def show(value: Any) -> str:
    """Return the beginning of a JSON value, for an error message."""
    # Incrementally, so that an error about a large tensor does not serialise all of it.
    text = "".join(itertools.islice(json.JSONEncoder().iterencode(value), _SHOWN_CHARS))
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
