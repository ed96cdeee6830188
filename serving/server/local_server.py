"""Run the REST server in this process, until a signal stops it."""

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from serving.models.model import Models
from serving.monitoring.metrics import Metrics
from serving.protocol.limits import MAX_BODY_BYTES
from serving.rest.rest_server import RestApi, build_app

# Time limits after a signal, for uploads to end and for complete requests to be answered: those of the server in a
# cluster (rest_api_timeout_in_ms of k8s/serving/deployment.yaml).
_UPLOAD_GRACE_SECS = 10.0
_SHUTDOWN_SECS = 30


def run(
    models: Models,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None],
    max_body_bytes: int = MAX_BODY_BYTES,
    cors: bool = False,
    upload_grace_secs: float = _UPLOAD_GRACE_SECS,
    shutdown_secs: int = _SHUTDOWN_SECS,
    metrics: Metrics | None = None,
) -> bool:
    """Serve loaded `models` until SIGTERM or SIGINT, then answer the requests in flight and return.

    `on_ready` is called once connections are accepted. Returns False if a computation exceeded `shutdown_secs` and its
    thread is still running.
    """
    app = build_app(models, max_body_bytes=max_body_bytes, cors=cors, metrics=metrics)
    api: RestApi = app.state.api
    # No log_config: dictConfig closes the handlers of the whole process, and absl's then closes its stream.
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=shutdown_secs,
        server_header=False,
    )
    server = _Server(config, on_ready, on_stop=lambda: api.stop(upload_grace_secs=upload_grace_secs))

    # After stopping, uvicorn raises the signal again for the previous handler. With the default handler, a clean stop
    # would look like a kill. This handler also covers signals before uvicorn installs its own.
    def stop(_signal: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return not app.state.inference.is_computing


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
