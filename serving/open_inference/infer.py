"""One inference request, the same over REST and gRPC: what was asked for, checked against the model.

Each protocol decodes its bytes to an `InferRequest` whose tensors keep the form they were sent in. `decode_inputs` then
checks names and data types against the signature and decodes the tensors; `choose_outputs` says what is answered.
Specification: kserve/open-inference-protocol, specification/protocol/inference_rest.md and inference_grpc.md.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from serving.models.model import Target
from serving.models.servable import not_found
from serving.open_inference.datatypes import Datatype, datatype_of
from serving.protocol.status import invalid
from serving.protocol.tensors import Array, SignatureSpec
from trainer.system.names import parse_version

# What metrics call this API, beside TensorFlow Serving's predict, classify and regress.
METHOD: Final = "infer"
# Our extension: a request's parameter that names the signature; without it, "serving_default" answers.
SIGNATURE_PARAMETER: Final = "signature_name"
# Extensions of Triton that change what a tensor means; without them, an answer would be wrong.
_FOREIGN_PARAMETERS: Final = ("classification", "shared_memory_region")

# More than any model has, and few enough to look at each of them.
_MAX_TENSORS: Final = 1000
_SHOWN_CHARS: Final = 80

Parameters = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputTensor:
    """An input as it was sent; `decode` gives its tensor, or raises RequestError (400) if it does not fit the shape."""

    name: str
    datatype: Datatype
    decode: Callable[[], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    """An output that was asked for; `is_binary` is None if the request does not say."""

    name: str
    is_binary: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request without its model.

    Attributes:
        id: what the answer repeats, or None.
        signature_name: None is the default one.
        inputs: at least one.
        outputs: in the order of the answer; empty asks for all.
        is_binary: whether outputs are binary that do not say otherwise.
    """

    id: str | None
    signature_name: str | None
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput]
    is_binary: bool


def parse_target(model: str, version: str) -> Target:
    """Return the model and version of a request; "" is the newest. Raises RequestError (404)."""
    if not version:
        return Target(model)
    number = parse_version(version)
    if number is None:
        raise not_found(f"Specific({model}, {shorten(version)})")
    return Target(model, number)


def shorten(name: str) -> str:
    """Return the beginning of a name from a request, for an error message."""
    return name if len(name) <= _SHOWN_CHARS else name[:_SHOWN_CHARS] + "..."


def check_count(what: str, count: int) -> None:
    """Raise RequestError (400) for more tensors than any model has."""
    if count > _MAX_TENSORS:
        raise invalid(f"the request has {count} {what}, expected {_MAX_TENSORS} at most")


def check_parameters(parameters: Parameters, where: str) -> None:
    """Raise RequestError (400) for parameters of extensions that this server does not have; others are ignored."""
    for name in _FOREIGN_PARAMETERS:
        if name in parameters:
            raise invalid(
                f"{where} has the parameter {name!r}, an extension that this server does not have; leave it out"
            )


def bool_parameter(parameters: Parameters, name: str) -> bool | None:
    """Return a parameter that is true or false, or None. Raises RequestError (400) for other values."""
    value = parameters.get(name)
    if name in parameters and not isinstance(value, bool):
        raise invalid(f"the parameter {name!r} must be true or false")
    return value


def signature_parameter(parameters: Parameters) -> str | None:
    """Return the signature that a request asks for, or None. Raises RequestError (400) if it is no text."""
    value = parameters.get(SIGNATURE_PARAMETER)
    if SIGNATURE_PARAMETER in parameters and not isinstance(value, str):
        raise invalid(f"the parameter {SIGNATURE_PARAMETER!r} must be the name of a signature")
    return value


def decode_inputs(request: InferRequest, signature: SignatureSpec) -> dict[str, Array]:
    """Decode the inputs of a request by name.

    Raises:
        RequestError: inputs are missing, unknown, given twice, of another data type, or do not fit their shapes (400);
            the protocol has no data type for one (501).
    """
    sent = [tensor.name for tensor in request.inputs]
    if sorted(sent) != sorted(signature.inputs):
        raise invalid(
            f"the request has the inputs {_names(sent)}, expected each of {_names(signature.inputs)} once, those of "
            f"signature {signature.name!r}; the parameter {SIGNATURE_PARAMETER!r} chooses another signature"
        )
    decoded = {}
    for tensor in request.inputs:
        expected = datatype_of(signature.inputs[tensor.name].dtype)
        if tensor.datatype is not expected:
            raise invalid(f"input {tensor.name!r} has datatype {tensor.datatype.name}, expected {expected.name}")
        decoded[tensor.name] = tensor.decode()
    return decoded


def choose_outputs(request: InferRequest, signature: SignatureSpec) -> list[tuple[RequestedOutput, Datatype]]:
    """Return the outputs to answer with their data types. Raises RequestError (400) for unknown or repeated names."""
    outputs = request.outputs or [RequestedOutput(name=name) for name in signature.outputs]
    names = [output.name for output in outputs]
    unknown = sorted(set(names) - set(signature.outputs))
    if unknown:
        raise invalid(
            f"signature {signature.name!r} has no output {shorten(unknown[0])!r}; it has {_names(signature.outputs)}"
        )
    if len(set(names)) < len(names):
        raise invalid(f"an output is asked for twice: {_names(names)}")
    return [(output, datatype_of(signature.outputs[output.name].dtype)) for output in outputs]


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    text = ", ".join(shorten(name) for name in list(names)[:20])
    return text if len(names) <= 20 else f"{text} and {len(names) - 20} more"
