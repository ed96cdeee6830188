"""Check the shapes that requests state, before anything is allocated for them."""

import math
from collections.abc import Iterable
from typing import Any, Final

from serving.http.json_tensors import show
from serving.protocol.status import invalid

# NumPy has 64; nobody needs half of them.
_MAX_RANK: Final = 32
# A shape with a zero in it has no elements, whatever its other sizes are; they must not overflow NumPy's strides.
_MAX_SIZE_BESIDE_ZERO: Final = 2**40


def check_shape(name: str, sizes: Iterable[Any]) -> tuple[int, ...]:
    """Return the stated sizes of an input as a shape. Raises RequestError (400) if they are none."""
    shape = tuple(sizes)
    if any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise invalid(f"input {name!r} has shape {show(list(shape))}; expected integers from 0 to 2^63 - 1")
    if len(shape) > _MAX_RANK:
        raise invalid(f"input {name!r} has {len(shape)} dimensions; expected {_MAX_RANK} at most")
    if 0 in shape and math.prod(filter(None, shape)) > _MAX_SIZE_BESIDE_ZERO:
        raise invalid(f"input {name!r} has shape {show(list(shape))}, whose sizes are too large")
    return shape
