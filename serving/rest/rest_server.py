"""Serve TensorFlow Serving's REST API for models in memory, as an ASGI application.

    POST /v1/models/M[/versions/N|/labels/L]:predict        and :classify, :regress with tf.Examples
    GET  /v1/models/M[/versions/N]                          status of the versions
    GET  /v1/models/M[/versions/N]/metadata                 signatures
    OPTIONS /v1/...                                         CORS preflight; see `cors`
    GET, POST /v2...                                        the Open Inference Protocol, `serving.open_inference`
    GET  /monitoring/prometheus/metrics
    GET  /, /page/...                                       the page for a browser (our own paths)
    GET  /readyz                                            names of the models once all are ready (our own path)

Paths, JSON and codes follow tensorflow_serving/model_servers/http_rest_api_util.cc and http_server.cc, which answer 400
to a malformed path under /v1/ and to a wrong method (including HEAD).
"""

import asyncio
import contextlib
import dataclasses
import functools
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from serving.http.exchange import Exchange, Labels, error_response, json_response, to_json, unless_disconnected
from serving.http.request_body import BodyReader
from serving.inference.inference import Inference, num_bytes_of
from serving.inference.model_status import status_of
from serving.models.model import Models, Target
from serving.models.servable import Servable
from serving.monitoring import metrics as monitoring
from serving.open_inference import rest_api as open_inference
from serving.page.page import find_classes, is_of_page, read_page
from serving.protocol.limits import MAX_BODY_BYTES
from serving.protocol.status import Code, RequestError, invalid
from serving.rest import codec, encoding
from serving.rest.decoded_call import DecodedCall
from serving.rest.examples import decode_examples
from trainer.system.names import parse_version

# kPredictionApiGegex and kModelStatusApiRegex of http_rest_api_util.cc.
_TARGET = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION_PATH = re.compile(_TARGET + r":(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_STATUS_PATH = re.compile(_TARGET + r"(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)
_PREDICTION_METHODS = ("predict", "classify", "regress")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A parsed request; `method` is predict, classify, regress, status or metadata."""

    method: str
    target: Target


def parse_call(http_method: str, path: str) -> Call:
    """Parse method and path (percent-encoded, without query). Raises RequestError (400)."""
    pattern = {"POST": _PREDICTION_PATH, "GET": _STATUS_PATH}.get(http_method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None:
        raise invalid(f"Malformed request: {http_method} {path}")
    version = parse_version(match["version"]) if match["version"] else None
    if version is None and match["version"]:
        raise invalid(f"Failed to convert version: {match['version']} to numeric.")
    method = match.groupdict().get("method") or ("metadata" if match["metadata"] else "status")
    label = None if match["label"] is None else urllib.parse.unquote(match["label"])
    return Call(method=method.lower(), target=Target(urllib.parse.unquote(match["model"]), version, label))


def decode_predict(body: bytes, servable: Servable) -> DecodedCall:
    """Decode the body of a `:predict` call. Raises RequestError."""
    request = codec.parse_predict_request(body)
    inputs = codec.decode_inputs(request, servable.signature(request.signature_name))
    return DecodedCall(request.signature_name, inputs, lambda outputs: encoding.encode_outputs(outputs, request.format))


_DECODERS: dict[str, Callable[[bytes, Servable], DecodedCall]] = {
    "predict": decode_predict,
    "classify": functools.partial(decode_examples, method="classify"),
    "regress": functools.partial(decode_examples, method="regress"),
}


def model_status(models: Models, target: Target) -> bytes:
    """Return the GetModelStatusResponse of one or all versions as JSON. Raises RequestError (404, 400)."""
    status = status_of(models, target)
    return to_json(json_format.MessageToDict(status, always_print_fields_with_no_presence=True))


def model_metadata(servable: Servable) -> bytes:
    """Return the GetModelMetadataResponse as JSON; like TensorFlow Serving, without the Any of `signature_def`."""

    def as_dict(message: Any) -> Any:
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    spec = model_pb2.ModelSpec(name=servable.model_name)
    spec.version.value = servable.version
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
    return to_json({"model_spec": as_dict(spec), "metadata": {"signature_def": as_dict(signatures)}})


class RestApi:
    """An ASGI endpoint that answers on the event loop; models and large conversions run in threads."""

    def __init__(self, inference: Inference, *, max_body_bytes: int, cors: bool, timeout_secs: float | None) -> None:
        self._inference = inference
        self._models = inference.models
        self._metrics = inference.metrics
        self._exchange = Exchange(inference.metrics, cors=cors)
        self._timeout_secs = timeout_secs
        self._bodies = BodyReader(max_body_bytes)
        self._open_inference = open_inference.OpenInferenceRest(
            inference, self._exchange, self._bodies, timeout_secs=timeout_secs
        )

    def stop(self, *, upload_grace_secs: float) -> None:
        """End unfinished uploads after `upload_grace_secs`; complete requests are still answered."""
        self._bodies.stop(upload_grace_secs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode("latin-1")
        if path == monitoring.PATH:
            response = Response(self._metrics.page(), media_type=monitoring.CONTENT_TYPE)
        elif request.method in ("GET", "HEAD") and path == "/readyz":
            response = self._readiness()
        elif open_inference.is_ours(path):
            response = await self._open_inference.answer(request, path)
        elif path.lower().startswith("/v1/"):
            response = await self._exchange.answer(request, functools.partial(self._respond, request, path))
        elif request.method in ("GET", "HEAD") and is_of_page(path):
            response = self._answer_browser(path)
        else:
            response = error_response(RequestError(Code.NOT_FOUND, f"nothing is at {path}; see /v1/models/NAME"))
        # A stopping server cancels requests that take too long, which is no error to log.
        with contextlib.suppress(asyncio.CancelledError):
            await response(scope, receive, send)

    def _readiness(self) -> Response:
        if not self._models.is_ready:
            return error_response(RequestError(Code.UNAVAILABLE, "models are still loading"))
        return json_response(to_json({"models": self._models.names}))

    def _answer_browser(self, path: str) -> Response:
        if path == "/":
            page = read_page()
            return Response(page.content, media_type="text/html", headers=page.headers)
        try:
            return json_response(to_json(find_classes(self._models, path)))
        except RequestError as e:
            return error_response(e)

    async def _respond(self, request: Request, path: str, labels: Labels) -> Response:
        call = parse_call(request.method, path)
        labels.model = call.target.model if self._models.get(call.target.model) else ""
        labels.method = call.method if call.method in _PREDICTION_METHODS else ""
        body = await self._bodies.read(request)
        return json_response(await unless_disconnected(self._compute(call, request, body), request))

    async def _compute(self, call: Call, request: Request, body: bytes) -> bytes:
        if call.method == "status":
            return model_status(self._models, call.target)
        with self._models.use(call.target) as servable:
            if call.method == "metadata":
                return model_metadata(servable)
            compression = request.headers.get("content-encoding", "")
            decode = _DECODERS[call.method]
            decoded = await self._inference.convert(
                lambda: decode(self._bodies.decompress(body, compression), servable), num_bytes=len(body)
            )
            outputs = await self._inference.run(
                servable,
                decoded.signature_name,
                decoded.inputs,
                method=call.method,
                deadline_secs=None if self._timeout_secs is None else time.monotonic() + self._timeout_secs,
            )
            return await self._inference.convert(lambda: decoded.encode(outputs), num_bytes=num_bytes_of(outputs))


def build_app(
    models: Models,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    cors: bool = False,
    timeout_secs: float | None = None,
    metrics: monitoring.Metrics | None = None,
) -> Starlette:
    """Build the application over `models`, loaded or not; `state.api` is its RestApi, `state.inference` its Inference.

    Requests larger than `max_body_bytes` are refused with 413, those that are not answered after `timeout_secs` with
    504, and with `cors` pages of any origin may call, as with TensorFlow Serving's --enable_cors_support.
    """
    inference = Inference(models, metrics=metrics)
    api = RestApi(inference, max_body_bytes=max_body_bytes, cors=cors, timeout_secs=timeout_secs)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        inference.close()

    # Starlette re-raises the exception after this answer, so that uvicorn logs its traceback.
    async def answer_internal_error(_: Request, error: Exception) -> Response:
        return error_response(RequestError(Code.INTERNAL, f"internal error: {type(error).__name__}"))

    app = Starlette(
        routes=[Route("/{path:path}", api)], lifespan=lifespan, exception_handlers={Exception: answer_internal_error}
    )
    app.state.api, app.state.inference = api, inference
    return app
