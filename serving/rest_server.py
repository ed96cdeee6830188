"""TensorFlow Serving's REST API for the models in memory, as an ASGI application.

    POST /v1/models/M[/versions/N|/labels/L]:predict        (:classify and :regress answer why they cannot)
    GET  /v1/models/M[/versions/N]                          status of the versions
    GET  /v1/models/M[/versions/N]/metadata                 signatures
    GET  /monitoring/prometheus/metrics
    GET  /readyz                                            names of the models once all of them answer (ours alone)

Paths, JSON and codes follow tensorflow_serving/model_servers/http_rest_api_util.cc and http_server.cc; a malformed
path under /v1/ or a wrong method is 400 there, and so it is here.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from serving import codec, metrics
from serving.servable import DEFAULT_SIGNATURE, Model, Models, Servable
from serving.status import Code, RequestError, invalid
from trainer.system.names import parse_version

# kPredictionApiGegex and kModelStatusApiRegex of http_rest_api_util.cc.
_TARGET = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION_PATH = re.compile(_TARGET + r":(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_STATUS_PATH = re.compile(_TARGET + r"(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What a request asks for: `method` is predict, classify, regress, status or metadata."""

    method: str
    model: str
    version: int | None


def parse_call(http_method: str, path: str) -> Call:
    """Reads method and path (still percent-encoded, no query). Raises RequestError (400)."""
    pattern = {"POST": _PREDICTION_PATH, "GET": _STATUS_PATH}.get(http_method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None:
        raise invalid(f"Malformed request: {http_method} {path}")
    if match["label"] is not None:
        raise invalid(f"Unrecognized servable version label: {urllib.parse.unquote(match['label'])}")
    version = parse_version(match["version"]) if match["version"] else None
    if version is None and match["version"]:
        raise invalid(f"Failed to convert version: {match['version']} to numeric.")
    method = match.groupdict().get("method") or ("metadata" if match["metadata"] else "status")
    return Call(method=method.lower(), model=urllib.parse.unquote(match["model"]), version=version)


def predict(servable: Servable, body: bytes) -> bytes:
    """Answers a `:predict` call. Raises RequestError."""
    request = codec.parse_predict_request(body)
    inputs = codec.decode_inputs(request, servable.signature(request.signature_name))
    return codec.encode_outputs(servable.run(request.signature_name, inputs), request.format)


def refuse_examples_method(servable: Servable, method: str, body: bytes) -> bytes:
    """Answers `:classify` and `:regress`, which want a signature over tf.Example protocol buffers: always an error.

    An export has none: its method is predict. The sentence is TensorFlow Serving's (classifier.cc, regressor.cc).
    """
    signature_name = codec.parse_json_object(body).get("signature_name", DEFAULT_SIGNATURE)
    if not isinstance(signature_name, str):
        raise invalid("'signature_name' key must be a string value")
    kind = "classification" if method == "classify" else "regression"
    raise invalid(
        f"Expected {kind} signature method_name to be tensorflow/serving/{method}. "
        f"Was: {servable.signature(signature_name).method_name}; use :predict"
    )


def model_status(model: Model, version: int | None) -> bytes:
    """GetModelStatusResponse as JSON, of one version or of all that are served. Raises RequestError (404)."""
    response = get_model_status_pb2.GetModelStatusResponse()
    servables = [s for v, s in sorted(model.servables.items()) if version in (None, v)]
    if not servables:
        raise RequestError(Code.NOT_FOUND, f"Could not find version {version} of model {model.name}")
    for servable in servables:
        state, error = servable.state, servable.error
        response.model_version_status.add(
            version=servable.version,
            state=state.value,
            status={"error_code": error.code.value if error else 0, "error_message": error.message if error else ""},
        )
    return _to_json(json_format.MessageToDict(response, always_print_fields_with_no_presence=True))


def model_metadata(servable: Servable) -> bytes:
    """GetModelMetadataResponse as JSON; as in TensorFlow Serving, `signature_def` is printed without its Any."""

    def as_dict(message: Any) -> Any:
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    spec = model_pb2.ModelSpec(name=servable.model_name)
    spec.version.value = servable.version
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
    return _to_json({"model_spec": as_dict(spec), "metadata": {"signature_def": as_dict(signatures)}})


class RestApi:
    """The ASGI endpoint: reads requests on the event loop, computes answers in threads."""

    def __init__(self, models: Models, *, max_body_bytes: int, num_threads: int) -> None:
        self._models = models
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics.Metrics()
        self._threads = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="predict")

    def close(self) -> None:
        self._threads.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode("latin-1")
        if request.method == "GET" and path == metrics.PATH:
            response = Response(self._metrics.page(), media_type=metrics.CONTENT_TYPE)
        elif request.method == "GET" and path == "/readyz":
            response = self._readiness()
        elif path.lower().startswith("/v1/"):
            response = await self._answer(request, path)
        else:
            response = _error_response(RequestError(Code.NOT_FOUND, f"nothing is at {path}; see /v1/models/NAME"))
        await response(scope, receive, send)

    def _readiness(self) -> Response:
        if not self._models.is_ready:
            return _error_response(RequestError(Code.UNAVAILABLE, "models are still loading"))
        return _json_response(_to_json({"models": self._models.names}))

    async def _answer(self, request: Request, path: str) -> Response:
        start_secs = time.perf_counter()
        self._metrics.begin()
        call, status = None, Code.INTERNAL.http_status
        try:
            call = parse_call(request.method, path)
            response = _json_response(await self._compute(call, request))
            status = response.status_code
        except RequestError as e:
            response, status = _error_response(e), e.http_status
        except ClientDisconnect:
            error = RequestError(Code.CANCELLED, "the client went away before its request was whole")
            response, status = _error_response(error), error.http_status
        finally:
            self._metrics.end(
                model=call.model if call and self._models.find(call.model) else "",
                method=call.method if call else "",
                status=status,
                latency_secs=time.perf_counter() - start_secs,
            )
        return response

    async def _compute(self, call: Call, request: Request) -> bytes:
        body = await self._read_body(request)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._computation(call, body))

    def _computation(self, call: Call, body: bytes) -> Callable[[], bytes]:
        if call.method == "status":
            model = self._models.find(call.model)
            if model is None:
                raise RequestError(Code.NOT_FOUND, f"Could not find any versions of model {call.model}")
            return lambda: model_status(model, call.version)
        servable = self._models.servable(call.model, call.version)
        if call.method == "metadata":
            return lambda: model_metadata(servable)
        if call.method == "predict":
            return lambda: predict(servable, body)
        return lambda: refuse_examples_method(servable, call.method, body)

    async def _read_body(self, request: Request) -> bytes:
        too_large = RequestError(
            Code.INVALID_ARGUMENT,
            f"the request body is larger than {self._max_body_bytes} bytes; send fewer or smaller images at a time, or "
            "start the server with a larger --max-body-mib",
            http_status=413,
        )
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise too_large
        chunks, num_bytes = [], 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > self._max_body_bytes:
                raise too_large
            chunks.append(chunk)
        return b"".join(chunks)


def build_app(models: Models, *, max_body_bytes: int, num_threads: int) -> Starlette:
    """The application over `models`, loaded or not.

    max_body_bytes: larger requests are refused with 413. num_threads: how many requests are computed at a time.
    """
    api = RestApi(models, max_body_bytes=max_body_bytes, num_threads=num_threads)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        api.close()

    # Starlette raises the exception again after this answer, so that uvicorn logs its traceback.
    async def answer_internal_error(_: Request, error: Exception) -> Response:
        return _error_response(RequestError(Code.INTERNAL, f"internal error: {type(error).__name__}"))

    return Starlette(
        routes=[Route("/{path:path}", api)], lifespan=lifespan, exception_handlers={Exception: answer_internal_error}
    )


def _to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _json_response(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def _error_response(error: RequestError) -> Response:
    return _json_response(_to_json({"error": error.message}), error.http_status)
