"""Answer one HTTP request: errors become documented answers, and every request is counted and measured."""

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.monitoring.metrics import Metrics
from serving.protocol.status import Code, RequestError

T = TypeVar("T")

# AddCORSHeaders of tensorflow_serving/model_servers/http_rest_api_util.cc.
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


@dataclasses.dataclass
class Labels:
    """The labels of a request in the metrics; filled in while it is read.

    Attributes:
        model: the name of a model that is served, or "".
        method: predict, classify, regress or infer; "" for others.
    """

    model: str = ""
    method: str = ""


class Exchange:
    """Answers requests in the same way for every HTTP API of a server; with `cors`, pages of any origin may call."""

    def __init__(self, metrics: Metrics, *, cors: bool) -> None:
        self._metrics = metrics
        self._cors = cors

    async def answer(self, request: Request, respond: Callable[[Labels], Awaitable[Response]]) -> Response:
        """Return the answer of `respond`, or that of the error that it raises."""
        start_secs = time.monotonic()
        self._metrics.begin()
        labels, status = Labels(), Code.INTERNAL
        try:
            response = _answer_preflight(request) if request.method == "OPTIONS" else await respond(labels)
            status = Code.OK
        except RequestError as e:
            response, status = error_response(e), e.code
        except ClientDisconnect:
            error = RequestError(Code.CANCELLED, "the client disconnected before its request was answered")
            response, status = error_response(error), error.code
        except asyncio.CancelledError:
            error = RequestError(Code.UNAVAILABLE, "the server stopped before the request was answered")
            response, status = error_response(error), error.code
        finally:
            self._metrics.end(
                model=labels.model, method=labels.method, status=status, latency_secs=time.monotonic() - start_secs
            )
        if self._cors:
            response.headers.update(_CORS_HEADERS)
        return response


async def unless_disconnected(answer: Coroutine[Any, Any, T], request: Request) -> T:
    """Return the answer, or cancel it and raise ClientDisconnect once nobody waits for it any more."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()


def _answer_preflight(request: Request) -> Response:
    # Like TensorFlow Serving's http_server.cc, which answers it with CORS off as well: browsers decide by the headers.
    if not re.search("https?://", request.headers.get("origin", "")):
        raise RequestError(Code.FAILED_PRECONDITION, "Origin header is missing in CORS preflight")
    return Response()


def to_json(value: Any) -> bytes:
    """Serialise a short document for people."""
    return json.dumps(value, indent=1).encode()


def json_response(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def error_response(error: RequestError) -> Response:
    """Return {"error": ...} with the HTTP status of `error`."""
    return json_response(to_json({"error": error.message}), error.http_status)
