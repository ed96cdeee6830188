"""Describe the server and its models, as plain values for both REST and gRPC."""

from typing import Final, NamedTuple

import trainer
from serving.models.model import Model, Models, Target
from serving.models.servable import State, not_found
from serving.open_inference.datatypes import datatype_of
from serving.open_inference.infer import SIGNATURE_PARAMETER
from serving.protocol.status import Code, RequestError
from serving.protocol.tensors import TensorSpec

SERVER_NAME: Final = "trainer"
SERVER_VERSION: Final = trainer.__version__
# Triton's name for the first, and our own.
EXTENSIONS: Final = ("binary_tensor_data", SIGNATURE_PARAMETER)


class TensorMetadata(NamedTuple):
    """An input or output; -1 in `shape` is any size, and an unknown rank is the shape [-1]."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(NamedTuple):
    """A model as one of its signatures has it; `versions` are those that answer, ascending."""

    name: str
    platform: str
    versions: list[str]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    signatures: list[str]

    @property
    def properties(self) -> dict[str, str]:
        """Our own properties: the signatures that a request can ask for."""
        return {"signatures": ",".join(self.signatures)}


def model_metadata(models: Models, target: Target, signature_name: str | None) -> ModelMetadata:
    """Describe a model. Raises RequestError: as `Models.use` does, or 400 for an unknown signature."""
    with models.use(target) as servable:
        signature = servable.signature(signature_name)
        return ModelMetadata(
            name=target.model,
            platform=servable.platform,
            versions=[str(version) for version in _available_versions(models.get(target.model))],
            inputs=[_describe(name, spec) for name, spec in signature.inputs.items()],
            outputs=[_describe(name, spec) for name, spec in signature.outputs.items()],
            signatures=sorted(servable.signatures),
        )


def is_model_ready(models: Models, target: Target) -> bool:
    """Return whether a version would answer. Raises RequestError (404) for a model that is not served."""
    if models.get(target.model) is None:
        raise not_found(str(target))
    try:
        with models.use(target):
            return True
    except RequestError as e:
        if e.code is Code.UNAVAILABLE:
            return False
        raise


def _available_versions(model: Model | None) -> list[int]:
    return sorted(v for v, s in model.servables.items() if s.state is State.AVAILABLE) if model else []


def _describe(name: str, spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name, datatype_of(spec.dtype).name, [-1] if spec.shape is None else list(spec.shape))
