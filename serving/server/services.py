"""Every gRPC API of the server."""

from serving.inference.inference import Inference
from serving.open_inference.service import open_inference_service
from serving.protocol.limits import MAX_BODY_BYTES
from serving.rpc.calls import Service
from serving.rpc.model_info import Reload
from serving.rpc.rpc_server import tensorflow_serving_services


def all_services(
    inference: Inference, *, max_body_bytes: int = MAX_BODY_BYTES, reload: Reload | None = None
) -> list[Service]:
    """Return the services of TensorFlow Serving and of the Open Inference Protocol."""
    tensorflow_serving = tensorflow_serving_services(inference, max_body_bytes=max_body_bytes, reload=reload)
    return [*tensorflow_serving, open_inference_service(inference)]
