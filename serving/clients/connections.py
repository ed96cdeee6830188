"""Connections to one model of a server that take and give tensors: over REST, and over gRPC."""

import base64
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import grpc
import httpx
import numpy as np

from serving.clients.ask import ask, no_answer
from serving.models.signature_defs import signature_spec
from serving.protocol.status import Code
from serving.protocol.tensors import Array, SignatureSpec, TensorSpec
from trainer.errors import ArtifactError, TrainerError, UsageError

# A batch of golden images of a large model, as pixels.
MAX_MESSAGE_BYTES = 256 * 2**20
_TLS_SCHEME = "grpcs"


class RemoteModel(NamedTuple):
    """A model of a server: its newest version, or the one of a version number or label."""

    name: str
    version: int | None = None
    label: str | None = None

    @property
    def path_suffix(self) -> str:
        """Return what follows the name in paths of the REST API."""
        if self.label is not None:
            return f"/labels/{urllib.parse.quote(self.label, safe='')}"
        return "" if self.version is None else f"/versions/{self.version}"


class Metadata(NamedTuple):
    """The metadata that a server gives of the model that it has loaded; signatures by name."""

    version: int
    signatures: Mapping[str, SignatureSpec]


class Connection(Protocol):
    """A connection to one model. Use it as a context manager.

    Every method raises ArtifactError if the server does not answer or lacks the model, UsageError if it refuses the
    input (with its reason), TrainerError if it fails.
    """

    api: str

    def metadata(self) -> Metadata: ...

    def predict(self, signature_name: str, input_name: str, values: Sequence[bytes] | Array) -> dict[str, Array]:
        """Return the outputs for one input; strings are arrays of `bytes`."""

    def __enter__(self) -> "Connection": ...

    def __exit__(self, *exception: object) -> None: ...


class RestConnection:
    """TensorFlow Serving's REST API at `address`, such as http://127.0.0.1:8501."""

    api = "REST"

    def __init__(self, address: str, model: RemoteModel, *, timeout_secs: float) -> None:
        self.address = address.rstrip("/")
        self._path = f"{self.address}/v1/models/{urllib.parse.quote(model.name, safe='')}{model.path_suffix}"
        self._http = httpx.Client(timeout=timeout_secs)

    def metadata(self) -> Metadata:
        answer = ask(self._http, "GET", f"{self._path}/metadata")
        try:
            signatures = answer["metadata"]["signature_def"]["signature_def"]
            return Metadata(
                int(answer["model_spec"]["version"]),
                {name: _signature_of_json(name, signature) for name, signature in signatures.items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ArtifactError(f"{self._path}/metadata is not metadata of a model: {str(answer)[:200]}") from None

    def predict(self, signature_name: str, input_name: str, values: Sequence[bytes] | Array) -> dict[str, Array]:
        if isinstance(values, np.ndarray):
            content: Any = values.tolist()
        else:
            content = [{"b64": base64.b64encode(value).decode()} for value in values]
        body = json.dumps({"signature_name": signature_name, "inputs": {input_name: content}})
        answer = ask(self._http, "POST", f"{self._path}:predict", body.encode())
        try:
            return {name: _array_of_json(column) for name, column in answer["outputs"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ArtifactError(f"{self._path}:predict answered without named outputs: {str(answer)[:200]}") from None

    def __enter__(self) -> "RestConnection":
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()


class GrpcConnection:
    """TensorFlow Serving's PredictionService at `address`: host:port, or grpcs://host:port for TLS."""

    api = "gRPC"

    def __init__(self, address: str, model: RemoteModel, *, timeout_secs: float) -> None:
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        target, credentials = make_target(address)
        self.address = target
        self._model = model
        self._timeout_secs = timeout_secs
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def metadata(self) -> Metadata:
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        fill_model_spec(request.model_spec, self._model)
        answer = self._call(self._stub.GetModelMetadata, request)
        found = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        return Metadata(
            answer.model_spec.version.value,
            {name: signature_spec(name, proto) for name, proto in found.signature_def.items()},
        )

    def predict(self, signature_name: str, input_name: str, values: Sequence[bytes] | Array) -> dict[str, Array]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        fill_model_spec(request.model_spec, self._model)
        request.model_spec.signature_name = signature_name
        content = values if isinstance(values, np.ndarray) else np.array(values, object)
        request.inputs[input_name].CopyFrom(tf.make_tensor_proto(content))
        answer = self._call(self._stub.Predict, request)
        return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}

    def __enter__(self) -> "GrpcConnection":
        return self

    def __exit__(self, *exception: object) -> None:
        self._channel.close()

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_secs)
        except grpc.RpcError as e:
            code, reason = Code[e.code().name], e.details()
            if code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                raise no_answer(self.address, str(reason)) from None
            message = f"{self.address} answered {code.name}: {reason}"
            if code in (Code.NOT_FOUND, Code.UNIMPLEMENTED):
                raise ArtifactError(message) from None
            raise UsageError(message) if code.http_status < 500 else TrainerError(message) from None


def make_target(address: str) -> tuple[str, grpc.ChannelCredentials | None]:
    """Return the target of a gRPC channel, and the credentials of one with TLS, for host:port or grpcs://host:port."""
    scheme, _, target = address.rpartition("://")
    if scheme not in ("", "grpc", _TLS_SCHEME):
        raise UsageError(f"{address!r} is not the address of a gRPC API; expected HOST:PORT or grpcs://HOST:PORT")
    return target, grpc.ssl_channel_credentials() if scheme == _TLS_SCHEME else None


def fill_model_spec(spec: Any, model: RemoteModel) -> None:
    """Write which model is meant into a ModelSpec of a request."""
    spec.name = model.name
    if model.version is not None:
        spec.version.value = model.version
    if model.label is not None:
        spec.version_label = model.label


def _signature_of_json(name: str, signature: Any) -> SignatureSpec:
    def spec(info: Any) -> TensorSpec:
        shape = info["tensor_shape"]
        if shape.get("unknown_rank"):
            return TensorSpec(dtype=info["dtype"], shape=None)
        return TensorSpec(dtype=info["dtype"], shape=tuple(int(dim["size"]) for dim in shape["dim"]))

    inputs, outputs = (
        {key: spec(info) for key, info in sorted(signature[side].items())} for side in ("inputs", "outputs")
    )
    return SignatureSpec(name=name, method_name=signature["method_name"], inputs=inputs, outputs=outputs)


def _array_of_json(column: Any) -> Array:
    values = np.array(column)
    if values.dtype.kind == "U":
        return np.array([text.encode() for text in column], object)
    return values
