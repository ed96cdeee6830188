"""The service `inference.GRPCInferenceService`: the Open Inference Protocol over gRPC.

Specification: inference_grpc.md of kserve/open-inference-protocol.
"""

from typing import Any, Final

import serving.protocol.protos.open_inference_pb2 as messages
from serving.inference.inference import Inference, num_bytes_of
from serving.open_inference import metadata
from serving.open_inference.grpc_messages import decode_request, fill_response
from serving.open_inference.infer import METHOD, choose_outputs, decode_inputs, parse_target
from serving.rpc.calls import Call, Method, Service

NAME: Final = "inference.GRPCInferenceService"


def open_inference_service(inference: Inference) -> Service:
    """Return the service over the models of `inference`."""
    api = _OpenInference(inference)
    return Service(
        NAME,
        {
            "ServerLive": Method(messages.ServerLiveRequest, api.server_live),
            "ServerReady": Method(messages.ServerReadyRequest, api.server_ready),
            "ModelReady": Method(messages.ModelReadyRequest, api.model_ready),
            "ServerMetadata": Method(messages.ServerMetadataRequest, api.server_metadata),
            "ModelMetadata": Method(messages.ModelMetadataRequest, api.model_metadata),
            "ModelInfer": Method(messages.ModelInferRequest, api.infer, METHOD),
        },
    )


class _OpenInference:
    """Answers requests. Every method raises RequestError."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._models = inference.models

    async def server_live(self, _request: Any, _call: Call) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, _request: Any, _call: Call) -> Any:
        return messages.ServerReadyResponse(ready=self._models.is_ready)

    async def server_metadata(self, _request: Any, _call: Call) -> Any:
        return messages.ServerMetadataResponse(
            name=metadata.SERVER_NAME, version=metadata.SERVER_VERSION, extensions=metadata.EXTENSIONS
        )

    async def model_ready(self, request: Any, call: Call) -> Any:
        call.model = request.name
        target = parse_target(request.name, request.version)
        return messages.ModelReadyResponse(ready=metadata.is_model_ready(self._models, target))

    async def model_metadata(self, request: Any, call: Call) -> Any:
        call.model = request.name
        model = metadata.model_metadata(self._models, parse_target(request.name, request.version), None)
        return messages.ModelMetadataResponse(
            name=model.name,
            versions=model.versions,
            platform=model.platform,
            inputs=[tensor._asdict() for tensor in model.inputs],
            outputs=[tensor._asdict() for tensor in model.outputs],
            properties=model.properties,
        )

    async def infer(self, request: Any, call: Call) -> Any:
        """Return the ModelInferResponse."""
        call.model = request.model_name
        with self._models.use(parse_target(request.model_name, request.model_version)) as servable:

            def decode() -> Any:
                asked = decode_request(request)
                signature = servable.signature(asked.signature_name)
                return asked, choose_outputs(asked, signature), decode_inputs(asked, signature)

            asked, chosen, inputs = await self._inference.convert(decode, num_bytes=request.ByteSize())
            outputs = await self._inference.run(
                servable, asked.signature_name, inputs, method=METHOD, deadline_secs=call.deadline_secs
            )
            response = messages.ModelInferResponse()
            await self._inference.convert(
                lambda: fill_response(response, servable=servable, request=asked, chosen=chosen, outputs=outputs),
                num_bytes=num_bytes_of(outputs),
            )
            return response
