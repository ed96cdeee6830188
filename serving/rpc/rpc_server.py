"""Serve gRPC APIs for models in memory, in the event loop that runs the REST API.

tensorflow.serving.PredictionService    Predict, Classify, Regress, MultiInference, GetModelMetadata
tensorflow.serving.ModelService         GetModelStatus, HandleReloadConfigRequest
inference.GRPCInferenceService          the Open Inference Protocol, `serving.open_inference.service`
grpc.health.v1.Health                   Check, Watch; also by the names of the services
grpc.reflection.v1alpha.ServerReflection
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
    regression_pb2,
)

from serving.inference.inference import Inference
from serving.protocol import address
from serving.protocol.limits import MAX_BODY_BYTES
from serving.rpc import health
from serving.rpc.calls import Method, Service, handler_of
from serving.rpc.examples import Examples
from serving.rpc.model_info import ModelInfo, Reload
from serving.rpc.predict import Predict

# From the descriptors, without which reflection cannot describe the services.
_PREDICTION_SERVICE: Final[str] = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
_MODEL_SERVICE: Final[str] = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
# By these names TensorFlow Serving's server.cc reports their health, too.
_SHORT_NAMES: Final = ("PredictionService", "ModelService")


def tensorflow_serving_services(
    inference: Inference, *, max_body_bytes: int = MAX_BODY_BYTES, reload: Reload | None = None
) -> list[Service]:
    """Return the services of TensorFlow Serving; for `reload` see `ModelInfo`."""
    examples, info = Examples(inference), ModelInfo(inference.models, reload=reload)
    predict = Predict(inference, max_repeated_bytes=max_body_bytes)
    prediction = {
        "Predict": Method(predict_pb2.PredictRequest, predict, "predict"),
        "Classify": Method(classification_pb2.ClassificationRequest, examples.classify, "classify"),
        "Regress": Method(regression_pb2.RegressionRequest, examples.regress, "regress"),
        "MultiInference": Method(inference_pb2.MultiInferenceRequest, examples.multi_inference),
        "GetModelMetadata": Method(get_model_metadata_pb2.GetModelMetadataRequest, info.metadata),
    }
    models = {
        "GetModelStatus": Method(get_model_status_pb2.GetModelStatusRequest, info.status),
        "HandleReloadConfigRequest": Method(model_management_pb2.ReloadConfigRequest, info.reload),
    }
    return [Service(_PREDICTION_SERVICE, prediction), Service(_MODEL_SERVICE, models)]


class RpcServer:
    """A gRPC server in the running event loop."""

    def __init__(
        self, inference: Inference, services: Sequence[Service], *, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        """Create a server of `services`; larger messages than `max_body_bytes` are RESOURCE_EXHAUSTED."""
        names = [service.name for service in services]
        self._health = health.Health(inference.models, [*names, *_SHORT_NAMES])
        self._reflection = _Reflection([*names, health.NAME, reflection.SERVICE_NAME])
        self._server = grpc.aio.server(
            options=[
                # Otherwise a second server shares the port instead of being told that it is in use.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_body_bytes),
                ("grpc.max_send_message_length", -1),
            ]
        )
        self._server.add_generic_rpc_handlers(tuple(handler_of(service, inference) for service in services))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(self._reflection, self._server)

    async def start(self, host: str, port: int) -> int:
        """Accept calls at `host:port` (0: any free port), and return the port.

        Raises DeviceError if the port is in use or the address is not this machine's.
        """
        try:
            bound = self._server.add_insecure_port(address.join_host_port(host, port))
        except RuntimeError:
            # gRPC does not say why: an ordinary socket meets the same error.
            address.listen(host, port, option="--grpc-port").close()
            raise
        await self._server.start()
        return int(bound)

    async def stop(self, grace_secs: float) -> None:
        """Refuse new calls at once, and return when those in flight have ended, cancelled after `grace_secs`.

        Another call may only shorten the time.
        """
        self._health.stop()
        self._reflection.stop()
        await self._server.stop(grace_secs)

    async def wait_stopped(self) -> None:
        """Return when `stop` has ended."""
        await self._server.wait_for_termination()


class _Reflection(reflection.aio.ReflectionServicer):
    """Describes the services; a client that keeps its call open does not hold up the end of the server."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()

    async def ServerReflectionInfo(  # noqa: N802  gRPC names it
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        stopping = asyncio.ensure_future(self._stopped.wait())
        answers = super().ServerReflectionInfo(request_iterator, context)
        try:
            while True:
                following = asyncio.ensure_future(anext(answers, None))
                await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    return
                answer = following.result()
                if answer is None:
                    return
                yield answer
        finally:
            stopping.cancel()
