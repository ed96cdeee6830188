"""Tensors by name, and the inputs and outputs that a signature has."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
        dtype: TensorFlow's enum name, such as "DT_FLOAT".
        shape: None for an unknown rank; -1 for a dynamic dimension. As in TensorFlow Serving it is not enforced: the
            graph decides.
    """

    dtype: str
    shape: tuple[int, ...] | None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether `shape` matches the declared shape."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want in (-1, have) for want, have in zip(self.shape, shape, strict=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignatureSpec:
    """The inputs and outputs of a signature, by name."""

    name: str
    method_name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def describe_misfits(signature: SignatureSpec, inputs: Mapping[str, Array]) -> str:
    """Return an addition to a graph's error, listing inputs whose shapes do not match the signature."""
    return "".join(
        f" (input {name!r} of signature {signature.name!r} has shape {list(array.shape)}, "
        f"expected {list(signature.inputs[name].shape or ())}, where -1 is any size)"
        for name, array in inputs.items()
        if not signature.inputs[name].fits(array.shape)
    )
