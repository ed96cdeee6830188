"""The states of a model's versions, in TensorFlow Serving's message for REST and gRPC."""

from typing import Any

from tensorflow_serving.apis import get_model_status_pb2

from serving.models.model import Models, Target, find_statuses


def status_of(models: Models, target: Target) -> Any:
    """Return the GetModelStatusResponse of what `target` names. Raises RequestError (404, 400)."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for servable in find_statuses(models, target):
        state, error = servable.state, servable.error
        response.model_version_status.add(
            version=servable.version,
            state=state.value,
            status={"error_code": error.code.value if error else 0, "error_message": error.message if error else ""},
        )
    return response
