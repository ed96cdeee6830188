"""Read the inputs and outputs of a SavedModel's signatures."""

import pathlib
from typing import Any

from google.protobuf.message import DecodeError

from serving.models.base_path import GRAPH_FILE
from serving.protocol.tensors import SignatureSpec, TensorSpec
from trainer.system.private_api.tensorflow_graph import SavedModel


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
