"""Read which model a request asks for, and say which one has answered."""

from typing import Any

from serving.models.model import Target
from serving.models.servable import DEFAULT_SIGNATURE, Servable
from serving.protocol.status import invalid
from serving.rpc.calls import Call


def read_target(request: Any, call: Call) -> Target:
    """Return the target in the `model_spec` of a request. Raises RequestError (400) if it has none."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return target_of(request.model_spec, call)


def target_of(spec: Any, call: Call) -> Target:
    """Return the target of a ModelSpec, as ServerCore::ServableRequestFromModelSpec of server_core.cc does.

    Raises RequestError (400) if it has no name.
    """
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    call.model = spec.name
    choice = spec.WhichOneof("version_choice")
    return Target(
        spec.name,
        version=spec.version.value if choice == "version" else None,
        label=spec.version_label if choice == "version_label" else None,
    )


def fill_model_spec(spec: Any, servable: Servable, signature_name: str) -> None:
    """Write what answered into the ModelSpec of an answer; "" is the default signature."""
    spec.name = servable.model_name
    spec.version.value = servable.version
    spec.signature_name = signature_name or DEFAULT_SIGNATURE
