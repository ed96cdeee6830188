"""Runs the REST server for one model in this process, until a signal asks it to stop."""

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from serving.limits import MAX_BODY_BYTES
from serving.rest.rest_server import RestApi, build_app
from serving.rest.servable import Model, Models

# After a signal an upload may take this long to end, and a request that is whole this long to be answered: as long as
# the server in a cluster gives it (rest_api_timeout_in_ms of k8s/serving/deployment.yaml).
_UPLOAD_GRACE_SECS = 10.0
_SHUTDOWN_SECS = 30


def run(
    model: Model,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None],
    max_body_bytes: int = MAX_BODY_BYTES,
    num_threads: int = 4,
    cors: bool = False,
    upload_grace_secs: float = _UPLOAD_GRACE_SECS,
    shutdown_secs: int = _SHUTDOWN_SECS,
) -> bool:
    """Serves a loaded `model` until SIGTERM or SIGINT, then answers the requests in flight and returns.

    on_ready: called once connections are accepted. Returns whether all is done: False where a computation outlived
    `shutdown_secs`, and its thread goes on.
    """
    app = build_app(Models(model), max_body_bytes=max_body_bytes, num_threads=num_threads, cors=cors)
    api: RestApi = app.state.api
    # Without a log_config: dictConfig closes the handlers of the whole process, and absl's then closes its stream.
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=shutdown_secs,
        server_header=False,
    )
    server = _Server(config, on_ready, on_stop=lambda: api.stop(upload_grace_secs=upload_grace_secs))

    # uvicorn raises the signal again after it has stopped, for whoever handled it before: without this that is the
    # default, and a server that stopped in good order would end as one that was killed. It also covers a signal
    # that comes before uvicorn has put its own handlers in place.
    def stop(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return not api.is_computing


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)
