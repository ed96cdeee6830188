"""What the signatures of a SavedModel take and give."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2

from serving.base_path import GRAPH_FILE

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a signature.

    dtype: TensorFlow's enum name, such as "DT_FLOAT". shape: None for an unknown rank; -1 for a free dimension. It says
    what the exporter had in mind, and nothing is refused by it: as in TensorFlow Serving, the graph decides.
    """

    dtype: str
    shape: tuple[int, ...] | None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of `shape` is what the exporter had in mind."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want in (-1, have) for want, have in zip(self.shape, shape, strict=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignatureSpec:
    """What a signature takes and gives, by name."""

    name: str
    method_name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def read_signature_defs(path: pathlib.Path) -> dict[str, Any]:
    """The SignatureDef protocol buffers of the SavedModel in `path`, by name. Raises ValueError."""
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString((path / GRAPH_FILE).read_bytes())
    except DecodeError as e:
        raise ValueError(f"{GRAPH_FILE} is not a SavedModel ({e})") from e
    for meta_graph in proto.meta_graphs:
        if list(meta_graph.meta_info_def.tags) == ["serve"]:
            return dict(meta_graph.signature_def)
    raise ValueError(f"{GRAPH_FILE} holds no graph with the tag 'serve'")


def signature_spec(name: str, proto: Any) -> SignatureSpec:
    """The part of a SignatureDef that requests are held to."""

    def specs(tensors: Any) -> dict[str, TensorSpec]:
        return {key: _tensor_spec(info) for key, info in sorted(tensors.items())}

    return SignatureSpec(
        name=name, method_name=proto.method_name, inputs=specs(proto.inputs), outputs=specs(proto.outputs)
    )


def _tensor_spec(info: Any) -> TensorSpec:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(dtype=types_pb2.DataType.Name(info.dtype), shape=shape)


def describe_misfits(signature: SignatureSpec, inputs: Mapping[str, Array]) -> str:
    """What to add to the graph's refusal of inputs that have other shapes than the signature says."""
    return "".join(
        f" (input {name!r} of signature {signature.name!r} has shape {list(array.shape)}, "
        f"expected {list(signature.inputs[name].shape or ())}, where -1 is any size)"
        for name, array in inputs.items()
        if not signature.inputs[name].fits(array.shape)
    )
