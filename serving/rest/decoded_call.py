"""A decoded call, and how its answer is encoded."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from serving.protocol.tensors import Array


class DecodedCall(NamedTuple):
    """The inputs of a call to a model by name, and what makes the body of the answer of its outputs."""

    signature_name: str | None
    inputs: Mapping[str, Array]
    encode: Callable[[Mapping[str, Array]], bytes]
