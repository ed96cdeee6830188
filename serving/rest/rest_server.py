"""Serve TensorFlow Serving's REST API for models in memory, as an ASGI application.

    POST /v1/models/M[/versions/N|/labels/L]:predict        and :classify, :regress with tf.Examples
    GET  /v1/models/M[/versions/N]                          status of the versions
    GET  /v1/models/M[/versions/N]/metadata                 signatures
    OPTIONS /v1/...                                         CORS preflight; see `cors`
    GET  /monitoring/prometheus/metrics
    GET  /readyz                                            names of the models once all are ready (our own path)

Paths, JSON and codes follow tensorflow_serving/model_servers/http_rest_api_util.cc and http_server.cc, which answer 400
to a malformed path under /v1/ and to a wrong method (including HEAD).
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import re
import time
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from serving.limits import MAX_BODY_BYTES
from serving.rest import codec, encoding, metrics
from serving.rest.examples import run_on_examples
from serving.rest.request_body import BodyReader
from serving.rest.servable import Model, Models, OnRun, Servable
from serving.rest.status import Code, RequestError, invalid
from trainer.system.names import parse_version

# kPredictionApiGegex and kModelStatusApiRegex of http_rest_api_util.cc.
_TARGET = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION_PATH = re.compile(_TARGET + r":(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_STATUS_PATH = re.compile(_TARGET + r"(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)
# AddCORSHeaders of http_rest_api_util.cc.
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_PREDICTION_METHODS = ("predict", "classify", "regress")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A parsed request; `method` is predict, classify, regress, status or metadata."""

    method: str
    model: str
    version: int | None


def parse_call(http_method: str, path: str) -> Call:
    """Parse method and path (percent-encoded, without query). Raises RequestError (400)."""
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


def predict(servable: Servable, body: bytes, on_run: OnRun | None = None) -> bytes:
    """Answer a `:predict` call; `on_run` as in `Servable.run`. Raises RequestError."""
    request = codec.parse_predict_request(body)
    inputs = codec.decode_inputs(request, servable.signature(request.signature_name))
    return encoding.encode_outputs(servable.run(request.signature_name, inputs, on_run), request.format)


def model_status(model: Model, version: int | None) -> bytes:
    """Return the GetModelStatusResponse of one or all versions as JSON. Raises RequestError (404)."""
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
    """Return the GetModelMetadataResponse as JSON; like TensorFlow Serving, without the Any of `signature_def`."""

    def as_dict(message: Any) -> Any:
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    spec = model_pb2.ModelSpec(name=servable.model_name)
    spec.version.value = servable.version
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
    return _to_json({"model_spec": as_dict(spec), "metadata": {"signature_def": as_dict(signatures)}})


class RestApi:
    """An ASGI endpoint that reads requests on the event loop and computes answers in threads."""

    def __init__(self, models: Models, *, max_body_bytes: int, num_threads: int, cors: bool) -> None:
        self._models = models
        self._cors = cors
        self._bodies = BodyReader(max_body_bytes)
        self._metrics = metrics.Metrics()
        self._computations: set[concurrent.futures.Future[bytes]] = set()
        self._threads = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="predict")

    def stop(self, *, upload_grace_secs: float) -> None:
        """End unfinished uploads after `upload_grace_secs`; complete requests are still answered."""
        self._bodies.stop(upload_grace_secs)

    def close(self) -> None:
        """Start no more computations; running ones are not awaited."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def is_computing(self) -> bool:
        return any(computation.running() for computation in list(self._computations))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode("latin-1")
        if path == metrics.PATH:
            response = Response(self._metrics.page(), media_type=metrics.CONTENT_TYPE)
        elif request.method in ("GET", "HEAD") and path == "/readyz":
            response = self._readiness()
        elif path.lower().startswith("/v1/"):
            response = await self._answer(request, path)
        else:
            response = _error_response(RequestError(Code.NOT_FOUND, f"nothing is at {path}; see /v1/models/NAME"))
        # A stopping server cancels requests that take too long, which is no error to log.
        with contextlib.suppress(asyncio.CancelledError):
            await response(scope, receive, send)

    def _readiness(self) -> Response:
        if not self._models.is_ready:
            return _error_response(RequestError(Code.UNAVAILABLE, "models are still loading"))
        return _json_response(_to_json({"models": self._models.names}))

    async def _answer(self, request: Request, path: str) -> Response:
        start_secs = time.perf_counter()
        self._metrics.begin()
        call, status = None, Code.INTERNAL
        try:
            if request.method == "OPTIONS":
                response = _answer_preflight(request)
            else:
                call = parse_call(request.method, path)
                response = _json_response(await self._compute(call, request))
            status = Code.OK
        except RequestError as e:
            response, status = _error_response(e), e.code
        except ClientDisconnect:
            error = RequestError(Code.CANCELLED, "the client disconnected before its request was complete")
            response, status = _error_response(error), error.code
        except asyncio.CancelledError:
            error = RequestError(Code.UNAVAILABLE, "the server stopped before the request was answered")
            response, status = _error_response(error), error.code
        finally:
            self._metrics.end(
                model=call.model if call and self._models.find(call.model) else "",
                method=call.method if call and call.method in _PREDICTION_METHODS else "",
                status=status,
                latency_secs=time.perf_counter() - start_secs,
            )
        if self._cors:
            response.headers.update(_CORS_HEADERS)
        return response

    async def _compute(self, call: Call, request: Request) -> bytes:
        body = await self._bodies.read(request)
        compression = request.headers.get("content-encoding", "")
        computation = self._threads.submit(lambda: self._respond(call, self._bodies.decompress(body, compression)))
        self._computations.add(computation)
        computation.add_done_callback(self._computations.discard)
        return await asyncio.wrap_future(computation)

    def _respond(self, call: Call, body: bytes) -> bytes:
        if call.method == "status":
            model = self._models.find(call.model)
            if model is None:
                raise RequestError(Code.NOT_FOUND, f"Could not find any versions of model {call.model}")
            return model_status(model, call.version)
        servable = self._models.servable(call.model, call.version)

        def on_run(secs: float) -> None:
            self._metrics.ran(model=call.model, method=call.method, latency_secs=secs)

        match call.method:
            case "predict":
                return predict(servable, body, on_run)
            case "classify" | "regress" as method:
                return run_on_examples(servable, method, body, on_run)
            case _:
                return model_metadata(servable)


def build_app(
    models: Models, *, max_body_bytes: int = MAX_BODY_BYTES, num_threads: int = 4, cors: bool = False
) -> Starlette:
    """Build the application over `models`, loaded or not; `state.api` is its RestApi.

    Requests larger than `max_body_bytes` are refused with 413, `num_threads` are computed at a time, and with `cors`
    pages of any origin may call, as with TensorFlow Serving's --enable_cors_support.
    """
    api = RestApi(models, max_body_bytes=max_body_bytes, num_threads=num_threads, cors=cors)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        api.close()

    # Starlette re-raises the exception after this answer, so that uvicorn logs its traceback.
    async def answer_internal_error(_: Request, error: Exception) -> Response:
        return _error_response(RequestError(Code.INTERNAL, f"internal error: {type(error).__name__}"))

    app = Starlette(
        routes=[Route("/{path:path}", api)], lifespan=lifespan, exception_handlers={Exception: answer_internal_error}
    )
    app.state.api = api
    return app


def _answer_preflight(request: Request) -> Response:
    # Like http_server.cc, which answers this with CORS off as well; browsers decide by the headers.
    if not re.search("https?://", request.headers.get("origin", "")):
        raise RequestError(Code.FAILED_PRECONDITION, "Origin header is missing in CORS preflight")
    return Response()


def _to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _json_response(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def _error_response(error: RequestError) -> Response:
    return _json_response(_to_json({"error": error.message}), error.http_status)
