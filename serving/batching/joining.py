"""Join the inputs of several requests along their first dimension, and split the outputs again.

The arithmetic of TensorFlow Serving's batching/batching_session.cc and batching_util.cc, without its threads.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from serving.protocol.status import invalid
from serving.protocol.tensors import Array

# As many dimensions as TensorFlow Serving pads.
_MAX_PADDED_RANK = 6


def batch_key(inputs: Mapping[str, Array], *, pad_variable_length: bool) -> Hashable:
    """Return what must be equal for requests to be joined: names, dtypes, and shapes without the first dimension.

    With `pad_variable_length` only the number of dimensions must be equal.
    """
    return tuple(
        (name, array.dtype.str, array.ndim if pad_variable_length else array.shape[1:])
        for name, array in sorted(inputs.items())
    )


def part_sizes(size: int, *, first: int, limit: int) -> list[int]:
    """Return the sizes of the parts of a request that is larger than a batch: at most `first`, then `limit` each."""
    sizes = [min(size, first)] if first else []
    size -= sum(sizes)
    return sizes + [limit] * (size // limit) + ([size % limit] if size % limit else [])


def round_up(size: int, allowed_sizes: Sequence[int]) -> int:
    """Return the smallest of the ascending `allowed_sizes` that is not below `size`; `size` itself if there is none."""
    return next((allowed for allowed in allowed_sizes if allowed >= size), size)


def join(requests: Sequence[Mapping[str, Array]], size: int) -> dict[str, Array]:
    """Join inputs with one `batch_key` to `size` rows; what they lack is filled by repeating the last row.

    Where the other dimensions differ, they are padded at their ends with the first element of their request.
    Raises RequestError (400) if an input is empty and cannot be padded.
    """
    return {name: _join_arrays([inputs[name] for inputs in requests], size) for name in requests[0]}


def split(outputs: Mapping[str, Array], sizes: Sequence[int]) -> list[dict[str, Array]]:
    """Return the rows of each request, in their order; rows beyond the sum of `sizes` are dropped."""
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def concatenate(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Join the outputs of the parts of one request."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def num_bytes_waiting(inputs: Mapping[str, Array]) -> int:
    """Return about how much memory inputs take, with the contents of strings."""
    return sum(
        array.nbytes + (sum(len(value) for value in array.flat) if array.dtype.hasobject else 0)
        for array in inputs.values()
    )


def _join_arrays(arrays: Sequence[Array], size: int) -> Array:
    if len(arrays) == 1 and len(arrays[0]) == size:
        return arrays[0]
    inner = tuple(np.max([array.shape[1:] for array in arrays], axis=0, initial=0))
    joined = np.empty((size, *inner), arrays[0].dtype)
    row = 0
    for array in arrays:
        rows = joined[row : row + len(array)]
        if array.shape[1:] != inner:
            if array.size == 0:
                raise invalid("Got empty tensor in batch of non-empty tensors.")
            if array.ndim > _MAX_PADDED_RANK:
                raise invalid(f"Only tensors with rank from 1 to {_MAX_PADDED_RANK} can be padded.")
            rows[...] = array.flat[0]
        rows[(slice(None), *map(slice, array.shape[1:]))] = array
        row += len(array)
    if row:
        joined[row:] = joined[row - 1]
    return joined
