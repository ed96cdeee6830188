"""Answer one gRPC call: errors become status codes, the client's deadline holds, and every call is counted.

Requests and answers are bytes until here, so that large ones are parsed and serialised in threads.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from serving.inference.inference import Inference
from serving.protocol.status import Code, RequestError

_GRPC_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
# ToGRPCStatus of tensorflow_serving/model_servers/grpc_status_util.cc: messages travel in a header of limited size.
_MAX_MESSAGE_BYTES: Final = 1024
_TRUNCATED: Final = "...TRUNCATED"

_logger = logging.getLogger(__name__)


class Call:
    """A call that is being answered.

    Attributes:
        method: predict, classify or regress, for the metrics; "" for others.
        deadline_secs: the client's deadline, in the time of `time.monotonic`; None is none.
        model: the name that the request has, once it is known.
    """

    def __init__(self, method: str, deadline_secs: float | None) -> None:
        self.method = method
        self.deadline_secs = deadline_secs
        self.model = ""

    @property
    def is_late(self) -> bool:
        return self.deadline_secs is not None and time.monotonic() >= self.deadline_secs


Answer = Callable[[Any, Call], Awaitable[Any]]


class Method(NamedTuple):
    """A method of a service: from the message of a request to that of its answer; raises RequestError to refuse it.

    Attributes:
        request_type: the class of the message.
        answer: what answers it.
        metric: predict, classify or regress; "" for others.
    """

    request_type: Any
    answer: Answer
    metric: str = ""


class Service(NamedTuple):
    """A service by its full name, with its methods by name."""

    name: str
    methods: dict[str, Method]


def handler_of(service: Service, inference: Inference) -> Any:
    """Return what grpc calls for the methods of a service."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(_Unary(method, inference).answer)
        for name, method in service.methods.items()
    }
    return grpc.method_handlers_generic_handler(service.name, handlers)


class _Unary:
    """A method as grpc calls it."""

    def __init__(self, method: Method, inference: Inference) -> None:
        self._method = method
        self._inference = inference

    async def answer(self, body: bytes, context: Any) -> bytes:
        start_secs = time.monotonic()
        left_secs = context.time_remaining()
        call = Call(self._method.metric, None if left_secs is None else start_secs + left_secs)
        metrics, status = self._inference.metrics, Code.INTERNAL
        metrics.begin()
        try:
            answer = await self._answer(body, call)
            status = Code.OK
            return answer
        except RequestError as e:
            error, status = e, e.code
        except asyncio.CancelledError:
            # grpc cancels the task when the client is gone, when its deadline has passed and when the server stops.
            status = Code.DEADLINE_EXCEEDED if call.is_late else Code.CANCELLED
            raise
        except Exception as e:
            _logger.exception("a gRPC call failed")
            error = RequestError(Code.INTERNAL, f"internal error: {type(e).__name__}")
        finally:
            metrics.end(
                model=call.model if self._inference.models.get(call.model) else "",
                method=call.method.capitalize(),
                status=status,
                latency_secs=time.monotonic() - start_secs,
                entrypoint="GRPC",
            )
        await context.abort(_GRPC_CODES[error.code.value], _shorten(error.message))
        raise AssertionError  # abort raises

    async def _answer(self, body: bytes, call: Call) -> bytes:
        request = await self._inference.convert(lambda: self._parse(body), num_bytes=len(body))
        response = await self._method.answer(request, call)
        serialize: Callable[[], bytes] = response.SerializeToString
        return await self._inference.convert(serialize, num_bytes=response.ByteSize())

    def _parse(self, body: bytes) -> Any:
        try:
            return self._method.request_type.FromString(body)
        except DecodeError as e:
            # gRPC's own code for it, https://grpc.github.io/grpc/core/md_doc_statuscodes.html
            name = self._method.request_type.DESCRIPTOR.full_name
            raise RequestError(Code.INTERNAL, f"the request is not a {name} ({e})") from None


def _shorten(message: str) -> str:
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + _TRUNCATED
