"""The paths of the Open Inference Protocol over REST.

    GET  /v2                                            server metadata
    GET  /v2/health/live, /v2/health/ready
    GET  /v2/models/M[/versions/N]                      model metadata; ?signature_name=S describes another signature
    GET  /v2/models/M[/versions/N]/ready
    POST /v2/models/M[/versions/N]/infer

HEAD is answered as GET. Another path is 404, another method 405. Requests to the health paths, which probes call all
the time, are not counted in the metrics. Specification: inference_rest.md of kserve/open-inference-protocol.
"""

import re
import time
import urllib.parse
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from serving.http.exchange import Exchange, Labels, error_response, json_response, to_json, unless_disconnected
from serving.http.request_body import BodyReader
from serving.inference.inference import Inference, num_bytes_of
from serving.models.model import Target
from serving.open_inference import metadata
from serving.open_inference.infer import METHOD, SIGNATURE_PARAMETER, choose_outputs, decode_inputs, parse_target
from serving.open_inference.rest_documents import JSON_LENGTH_HEADER, Answer, decode_request, encode_answer
from serving.protocol.status import Code, RequestError

ROOT: Final = "/v2"
_MODEL_PATH: Final = re.compile(
    r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<action>ready|infer))?"
)


def is_ours(path: str) -> bool:
    """Return whether a path is one of this protocol's, known or not."""
    return path == ROOT or path.startswith(f"{ROOT}/")


class OpenInferenceRest:
    """Answers requests on the event loop; models and large conversions run in threads."""

    def __init__(
        self, inference: Inference, exchange: Exchange, bodies: BodyReader, *, timeout_secs: float | None
    ) -> None:
        self._inference = inference
        self._models = inference.models
        self._exchange = exchange
        self._bodies = bodies
        self._timeout_secs = timeout_secs

    async def answer(self, request: Request, path: str) -> Response:
        """Answer a request to `path`, percent-encoded and without its query, for which `is_ours` holds."""
        if path in (f"{ROOT}/health/live", f"{ROOT}/health/ready"):
            return self._health(request, path)
        return await self._exchange.answer(request, lambda labels: self._respond(request, path, labels))

    def _health(self, request: Request, path: str) -> Response:
        try:
            _check_method(request, "GET")
        except RequestError as e:
            return error_response(e)
        if path.endswith("live"):
            return json_response(to_json({"live": True}))
        if not self._models.is_ready:
            return error_response(RequestError(Code.UNAVAILABLE, "models are still loading"))
        # The specification's text says "live" here as well; KServe answers with "ready".
        return json_response(to_json({"live": True, "ready": True}))

    async def _respond(self, request: Request, path: str, labels: Labels) -> Response:
        if path in (ROOT, f"{ROOT}/"):
            _check_method(request, "GET")
            return json_response(to_json(_server_metadata()))
        match = _MODEL_PATH.fullmatch(path)
        if match is None:
            raise RequestError(Code.NOT_FOUND, f"nothing is at {path[:200]}; see {ROOT}/models/NAME")
        model = urllib.parse.unquote(match["model"])
        labels.model = model if self._models.get(model) else ""
        is_infer = match["action"] == METHOD
        labels.method = METHOD if is_infer else ""
        _check_method(request, "POST" if is_infer else "GET")
        target = parse_target(model, urllib.parse.unquote(match["version"] or ""))
        if is_infer:
            body = await self._bodies.read(request)
            return _infer_response(await unless_disconnected(self._infer(target, request, body), request))
        if match["action"] == "ready":
            return self._readiness(target)
        signature_name = request.query_params.get(SIGNATURE_PARAMETER)
        return json_response(to_json(_as_document(metadata.model_metadata(self._models, target, signature_name))))

    def _readiness(self, target: Target) -> Response:
        if not metadata.is_model_ready(self._models, target):
            raise RequestError(Code.UNAVAILABLE, f"model {target.model} is still loading; try again")
        return json_response(to_json({"name": target.model, "ready": True}))

    async def _infer(self, target: Target, request: Request, body: bytes) -> Answer:
        deadline_secs = None if self._timeout_secs is None else time.monotonic() + self._timeout_secs
        compression, json_length = request.headers.get("content-encoding", ""), request.headers.get(JSON_LENGTH_HEADER)
        with self._models.use(target) as servable:

            def decode() -> Any:
                asked = decode_request(self._bodies.decompress(body, compression), json_length)
                signature = servable.signature(asked.signature_name)
                return asked, choose_outputs(asked, signature), decode_inputs(asked, signature)

            asked, chosen, inputs = await self._inference.convert(decode, num_bytes=len(body))
            outputs = await self._inference.run(
                servable, asked.signature_name, inputs, method=METHOD, deadline_secs=deadline_secs
            )
            return await self._inference.convert(
                lambda: encode_answer(
                    model_name=servable.model_name,
                    model_version=servable.version,
                    request=asked,
                    chosen=chosen,
                    outputs=outputs,
                ),
                num_bytes=num_bytes_of(outputs),
            )


def _check_method(request: Request, expected: str) -> None:
    if request.method != expected and not (expected == "GET" and request.method == "HEAD"):
        message = f"{request.method} is not possible here; use {expected}"
        raise RequestError(Code.UNIMPLEMENTED, message, http_status=405)


def _infer_response(answer: Answer) -> Response:
    if answer.json_length is None:
        return json_response(answer.body)
    headers = {JSON_LENGTH_HEADER: str(answer.json_length)}
    return Response(answer.body, headers=headers, media_type="application/octet-stream")


def _server_metadata() -> dict[str, Any]:
    return {
        "name": metadata.SERVER_NAME,
        "version": metadata.SERVER_VERSION,
        "extensions": list(metadata.EXTENSIONS),
    }


def _as_document(model: metadata.ModelMetadata) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": model.versions,
        "platform": model.platform,
        "inputs": [tensor._asdict() for tensor in model.inputs],
        "outputs": [tensor._asdict() for tensor in model.outputs],
        "properties": model.properties,
    }
