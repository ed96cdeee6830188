"""Read the inputs and outputs of a SavedModel's signatures."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from serving.base_path import GRAPH_FILE
from trainer.system.private_api.tensorflow_graph import SavedModel

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


def read_signature_defs(path: pathlib.Path) -> dict[str, Any]:
    """Read the SignatureDef protocol buffers of the SavedModel in `path`, by name. Raises ValueError."""
    proto = SavedModel()
    try:
        proto.ParseFromString((path / GRAPH_FILE).read_bytes())
    except DecodeError as e:
        raise ValueError(f"{GRAPH_FILE} is not a SavedModel ({e})") from e
    for meta_graph in proto.meta_graphs:
        if list(meta_graph.meta_info_def.tags) == ["serve"]:
            return dict(meta_graph.signature_def)
    raise ValueError(f"{GRAPH_FILE} holds no graph with the tag 'serve'")


def signature_spec(name: str, proto: Any) -> SignatureSpec:
    """Return the part of a SignatureDef that requests are checked against."""

    def specs(tensors: Any) -> dict[str, TensorSpec]:
        return {key: _tensor_spec(info) for key, info in sorted(tensors.items())}

    return SignatureSpec(
        name=name, method_name=proto.method_name, inputs=specs(proto.inputs), outputs=specs(proto.outputs)
    )


def _tensor_spec(info: Any) -> TensorSpec:
    dtypes = info.DESCRIPTOR.fields_by_name["dtype"].enum_type
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(dtype=dtypes.values_by_number[info.dtype].name, shape=shape)


def describe_misfits(signature: SignatureSpec, inputs: Mapping[str, Array]) -> str:
    """Return an addition to a graph's error, listing inputs whose shapes do not match the signature."""
    return "".join(
        f" (input {name!r} of signature {signature.name!r} has shape {list(array.shape)}, "
        f"expected {list(signature.inputs[name].shape or ())}, where -1 is any size)"
        for name, array in inputs.items()
        if not signature.inputs[name].fits(array.shape)
    )
