"""Runs the REST server for one export in this process, until a signal asks it to stop."""

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from serving.rest_server import build_app
from serving.servable import Model, Models

# A request in flight may take this long after a signal; then the server stops anyway.
_SHUTDOWN_SECS = 60


def run(
    model: Model, listener: socket.socket, *, max_body_bytes: int, num_threads: int, on_ready: Callable[[], None]
) -> None:
    """Serves a loaded `model` until SIGTERM or SIGINT, then answers the requests in flight and returns.

    on_ready: called once connections are accepted.
    """
    app = build_app(Models(model), max_body_bytes=max_body_bytes, num_threads=num_threads)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_SHUTDOWN_SECS, server_header=False
    )
    server = _Server(config, on_ready)

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


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()
