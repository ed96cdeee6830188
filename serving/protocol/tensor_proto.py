"""Convert TensorFlow's TensorProto to arrays and back, as tensorflow/core/framework/tensor.cc does, but within limits.

A TensorProto may hold fewer values than its shape has elements: the last one is repeated, or zeros if there is none. So
a few bytes can claim any amount of memory, and what is repeated counts against a limit. Nothing here imports
TensorFlow: messages are given.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np

from serving.protocol.tensors import Array

_MAX_ELEMENTS: Final = 2**63 - 1
# NumPy's limit; the kernels of TensorFlow take 8.
_MAX_DIMENSIONS: Final = 64
# What TensorFlow takes for each string of a tensor, beside its bytes.
_STRING_BYTES: Final = 24


@dataclasses.dataclass
class RepeatBudget:
    """How many bytes the repeated values of a request may still take."""

    num_bytes: int

    def spend(self, num_bytes: int) -> None:
        """Raise ValueError if that is more than is left."""
        if num_bytes > self.num_bytes:
            raise ValueError(
                f"its shape claims {num_bytes} bytes more than it holds, and repeating the last value fills at most "
                f"{self.num_bytes}; send every value, or start the server with a larger --max-body-mib"
            )
        self.num_bytes -= num_bytes


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How the values of a dtype are kept: the field, and what makes an array of its numbers."""

    dtype: np.dtype[Any]
    field: str
    to_array: Callable[[Any, int, np.dtype[Any]], Array]
    to_values: Callable[[Array], list[Any]]
    values_per_element: int = 1


def _numbers(values: Any, count: int, dtype: np.dtype[Any]) -> Array:
    return np.fromiter(values, dtype, count)


def _narrow(values: Any, count: int, dtype: np.dtype[Any]) -> Array:
    # The field is int32: the lowest bits are the number, as in a cast of C.
    return np.fromiter(values, np.int32, count).astype(dtype)


def _bits(values: Any, count: int, dtype: np.dtype[Any]) -> Array:
    return np.fromiter(values, np.int32, count).astype(np.uint16).view(dtype)


def _parts(values: Any, count: int, dtype: np.dtype[Any]) -> Array:
    real = np.float32 if dtype == np.complex64 else np.float64
    return np.fromiter(values, real, 2 * count).view(dtype)


def _plain(array: Array) -> list[Any]:
    values: list[Any] = array.tolist()
    return values


def _number(dtype: Any, field: str) -> _Kind:
    return _Kind(np.dtype(dtype), field, _numbers, _plain)


def _in_int32(dtype: Any) -> _Kind:
    return _Kind(np.dtype(dtype), "int_val", _narrow, _plain)


def _in_half(dtype: Any) -> _Kind:
    return _Kind(np.dtype(dtype), "half_val", _bits, lambda array: array.view(np.uint16).tolist())


def _complex(dtype: Any, real: Any, field: str) -> _Kind:
    return _Kind(np.dtype(dtype), field, _parts, lambda array: array.view(real).tolist(), values_per_element=2)


_KINDS: Final = {
    "DT_FLOAT": _number(np.float32, "float_val"),
    "DT_DOUBLE": _number(np.float64, "double_val"),
    "DT_HALF": _in_half(np.float16),
    "DT_BFLOAT16": _in_half(ml_dtypes.bfloat16),
    "DT_INT8": _in_int32(np.int8),
    "DT_UINT8": _in_int32(np.uint8),
    "DT_INT16": _in_int32(np.int16),
    "DT_UINT16": _in_int32(np.uint16),
    "DT_INT32": _number(np.int32, "int_val"),
    "DT_UINT32": _number(np.uint32, "uint32_val"),
    "DT_INT64": _number(np.int64, "int64_val"),
    "DT_UINT64": _number(np.uint64, "uint64_val"),
    "DT_BOOL": _number(np.bool_, "bool_val"),
    "DT_COMPLEX64": _complex(np.complex64, np.float32, "scomplex_val"),
    "DT_COMPLEX128": _complex(np.complex128, np.float64, "dcomplex_val"),
}
_NAMES: Final = {kind.dtype: name for name, kind in _KINDS.items()}


def dtype_name(proto: Any) -> str:
    """Return the dtype of a TensorProto as "DT_FLOAT", or as its number if it is unknown."""
    known = proto.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number
    return str(known[proto.dtype].name) if proto.dtype in known else str(proto.dtype)


def decode_tensor(proto: Any, budget: RepeatBudget) -> Array:
    """Return the array of a TensorProto; strings are an array of `bytes` objects.

    The size that the shape claims is checked before memory is taken for it.

    Raises:
        ValueError: it is not a valid tensor, or repeats more than `budget` allows; the message is the reason.
    """
    shape, num_elements = _read_shape(proto)
    name = dtype_name(proto)
    if name == "DT_STRING":
        flat = _decode_strings(proto, num_elements, budget)
    elif name in _KINDS:
        flat = _decode_numbers(proto, _KINDS[name], num_elements, budget)
    else:
        raise ValueError(f"its dtype {name} is none of DT_STRING, {', '.join(_KINDS)}")
    return flat.reshape(shape)


def encode_tensor(array: Array, proto: Any) -> None:
    """Fill an empty TensorProto with `array`, in the field of its dtype, as TensorFlow Serving answers.

    Raises:
        ValueError: the array has a dtype without a field.
    """
    enum = proto.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        proto.dtype = enum["DT_STRING"].number
        proto.string_val.extend(array.ravel().tolist())
        return
    if array.dtype not in _NAMES:
        raise ValueError(f"no field of a TensorProto holds {array.dtype}")
    name = _NAMES[array.dtype]
    proto.dtype = enum[name].number
    kind = _KINDS[name]
    getattr(proto, kind.field).extend(kind.to_values(np.ascontiguousarray(array).ravel()))


def _read_shape(proto: Any) -> tuple[tuple[int, ...], int]:
    if proto.tensor_shape.unknown_rank:
        raise ValueError("its shape has an unknown rank")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"it has {len(shape)} dimensions, at most {_MAX_DIMENSIONS} are possible")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape {list(shape)} has a negative dimension")
    # Also where another dimension is 0: NumPy multiplies those that are not.
    if math.prod(size for size in shape if size) * _STRING_BYTES > _MAX_ELEMENTS:
        raise ValueError(f"its shape {list(shape)} has more elements than can be counted")
    return shape, math.prod(shape)


def _decode_numbers(proto: Any, kind: _Kind, num_elements: int, budget: RepeatBudget) -> Array:
    content = proto.tensor_content
    if content:
        wanted = num_elements * kind.dtype.itemsize
        if len(content) != wanted:
            raise ValueError(f"its tensor_content has {len(content)} bytes, its shape and dtype {wanted}")
        return np.frombuffer(content, np.uint8) != 0 if kind.dtype == np.bool_ else np.frombuffer(content, kind.dtype)
    values = getattr(proto, kind.field)
    num_given = min(len(values) // kind.values_per_element, num_elements)
    if num_given == num_elements:
        return kind.to_array(values, num_elements, kind.dtype)
    budget.spend((num_elements - num_given) * kind.dtype.itemsize)
    filled = np.zeros(num_elements, kind.dtype)
    if num_given:
        given = kind.to_array(values, num_given, kind.dtype)
        filled[:num_given], filled[num_given:] = given, given[-1]
    return filled


def _decode_strings(proto: Any, num_elements: int, budget: RepeatBudget) -> Array:
    content = proto.tensor_content
    strings = _split_strings(content, num_elements) if content else list(proto.string_val[:num_elements])
    last = strings[-1] if strings else b""
    budget.spend((num_elements - len(strings)) * (_STRING_BYTES + len(last)))
    array = np.empty(num_elements, object)
    array[:] = last
    array[: len(strings)] = strings
    return array


def _split_strings(content: bytes, num_elements: int) -> list[bytes]:
    """Split a `tensor_content` of strings: their lengths as varints, then their bytes one after the other."""
    if num_elements > len(content):
        raise ValueError(f"its tensor_content has {len(content)} bytes, too few for {num_elements} strings")
    lengths, position = [], 0
    for _ in range(num_elements):
        length, position = _read_varint(content, position)
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise ValueError(f"its tensor_content has {len(content)} bytes, its lengths {position + sum(lengths)}")
    strings = []
    for length in lengths:
        strings.append(content[position : position + length])
        position += length
    return strings


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(5):  # of 32 bits
        if position + index >= len(content):
            break
        byte = content[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("its tensor_content has an invalid length of a string")
