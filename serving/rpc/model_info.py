"""Answer GetModelStatus, HandleReloadConfigRequest and GetModelMetadata.

Follows tensorflow_serving/model_servers/get_model_status_impl.cc, model_service_impl.cc and
servables/tensorflow/get_model_metadata_impl.cc.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from tensorflow_serving.apis import get_model_metadata_pb2, model_management_pb2

from serving.inference.model_status import status_of
from serving.models.model import Models, Target
from serving.protocol.status import Code, RequestError, invalid
from serving.rpc.calls import Call
from serving.rpc.model_spec import read_target

Reload = Callable[[Any], None]

_SIGNATURE_DEF: Final = "signature_def"


class ModelInfo:
    """Answers questions about models. Every method raises RequestError."""

    def __init__(self, models: Models, *, reload: Reload | None = None) -> None:
        """Answer about `models`; `reload` serves those of a ModelServerConfig, and raises RequestError if it cannot.

        Without `reload`, the models stay those of the start, and a request to change them is refused.
        """
        self._models = models
        self._reload = reload

    async def status(self, request: Any, call: Call) -> Any:
        """Return the GetModelStatusResponse of one or all versions of a model."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        # Without the check of the name: an unknown one has no versions.
        spec, choice = request.model_spec, request.model_spec.WhichOneof("version_choice")
        call.model = spec.name
        return status_of(
            self._models,
            Target(
                spec.name,
                version=spec.version.value if choice == "version" else None,
                label=spec.version_label if choice == "version_label" else None,
            ),
        )

    async def metadata(self, request: Any, call: Call) -> Any:
        """Return the GetModelMetadataResponse of a version, with its signatures."""
        target = read_target(request, call)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise invalid(f"Metadata field {field} is not supported")
        with self._models.use(target) as servable:
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = servable.model_name
            response.model_spec.version.value = servable.version
            response.metadata[_SIGNATURE_DEF].Pack(
                get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
            )
            return response

    async def reload(self, request: Any, _: Call) -> Any:
        """Return the ReloadConfigResponse once the models of the request's configuration are served."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        if self._reload is None:
            raise RequestError(
                Code.FAILED_PRECONDITION,
                "Cannot transition to requested config. This server keeps the models that it was started with; start "
                "it again to serve others",
            )
        await asyncio.to_thread(self._reload, request.config)
        return model_management_pb2.ReloadConfigResponse(status={"error_code": Code.OK.value})
