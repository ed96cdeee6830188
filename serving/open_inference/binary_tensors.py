"""Convert tensors to their binary form and back, as in the binary tensor data extension and gRPC's raw contents.

Elements are little-endian, in row-major order, without padding; those of BYTES have their length before them, in four
bytes. Format: docs/protocol/extension_binary_data.md of triton-inference-server/server.
"""

import math
import struct
from typing import Final

import numpy as np

from serving.http.json_tensors import object_array
from serving.open_inference.datatypes import Datatype
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array

_LENGTH: Final = struct.Struct("<I")


def decode_binary(name: str, datatype: Datatype, shape: tuple[int, ...], content: memoryview) -> Array:
    """Return the tensor in `content`; numbers are not copied. Raises RequestError (400) if it does not fit `shape`."""
    if datatype.name == "BYTES":
        return _decode_strings(name, math.prod(shape), content).reshape(shape)
    expected = math.prod(shape) * datatype.numpy.itemsize
    if len(content) != expected:
        raise invalid(
            f"input {name!r} has {len(content)} bytes of data, expected {expected} for shape {list(shape)} of "
            f"{datatype.name}"
        )
    if datatype.name == "BOOL":
        flags = np.frombuffer(content, dtype=np.uint8)
        if flags.size and flags.max() > 1:
            raise invalid(f"input {name!r}: the byte {flags.max()} is no BOOL; expected 0 or 1")
        return flags.view(np.bool_).reshape(shape)
    return np.frombuffer(content, dtype=datatype.wire).astype(datatype.numpy, copy=False).reshape(shape)


def _decode_strings(name: str, count: int, content: memoryview) -> Array:
    # Before anything is allocated for them: each element takes four bytes at least.
    if count * _LENGTH.size > len(content):
        raise invalid(f"input {name!r} has {len(content)} bytes of data, too few for {count} elements of BYTES")
    items, position = [], 0
    for index in range(count):
        if position + _LENGTH.size > len(content):
            raise invalid(f"input {name!r}: the data ends before element {index} of {count}")
        (length,) = _LENGTH.unpack_from(content, position)
        position += _LENGTH.size
        if length > len(content) - position:
            raise invalid(
                f"input {name!r}: element {index} claims {length} bytes, but {len(content) - position} are left"
            )
        items.append(bytes(content[position : position + length]))
        position += length
    if position != len(content):
        raise invalid(f"input {name!r} has {len(content) - position} bytes of data after its {count} elements")
    return object_array(items)


def encode_binary(name: str, datatype: Datatype, array: Array) -> bytes:
    """Return the binary form of an output."""
    if datatype.name != "BYTES":
        return array.astype(datatype.wire, copy=False).tobytes()
    parts: list[bytes] = []
    for item in array.ravel():
        if len(item) >= 2**32:
            raise RequestError(Code.INTERNAL, f"output {name!r} has an element of {len(item)} bytes, 2^32 - 1 at most")
        parts += (_LENGTH.pack(len(item)), item)
    return b"".join(parts)
