"""Run the REST and gRPC servers in this process and one event loop, until a signal stops them."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from serving.models.model import Models
from serving.monitoring.metrics import Metrics
from serving.protocol.limits import MAX_BODY_BYTES
from serving.rest.rest_server import RestApi, build_app
from serving.rpc.model_info import Reload
from serving.rpc.rpc_server import RpcServer
from serving.server.services import all_services

# Time limits after a signal, for uploads to end and for complete requests to be answered: those of the server in a
# cluster (rest_api_timeout_in_ms of k8s/serving/deployment.yaml).
_UPLOAD_GRACE_SECS = 10.0
_SHUTDOWN_SECS = 30


def run(
    models: Models,
    listener: socket.socket,
    *,
    rpc_listener: socket.socket | None = None,
    on_ready: Callable[[], None],
    max_body_bytes: int = MAX_BODY_BYTES,
    cors: bool = False,
    upload_grace_secs: float = _UPLOAD_GRACE_SECS,
    shutdown_secs: int = _SHUTDOWN_SECS,
    metrics: Metrics | None = None,
    reload: Reload | None = None,
) -> bool:
    """Serve loaded `models` until SIGTERM or SIGINT, then answer the requests in flight and return.

    REST is served at `listener`. gRPC, which takes no socket, binds the address of `rpc_listener`, which is closed for
    it; with None there is no gRPC. `on_ready` is called once connections are accepted; for `reload` see `ModelInfo`.
    Returns False if a computation exceeded `shutdown_secs` and its thread is still running.

    Raises:
        DeviceError: another process took the address of `rpc_listener` in that moment.
    """
    app = build_app(models, max_body_bytes=max_body_bytes, cors=cors, metrics=metrics)
    api: RestApi = app.state.api

    def make_rpc() -> RpcServer:
        services = all_services(app.state.inference, max_body_bytes=max_body_bytes, reload=reload)
        return RpcServer(app.state.inference, services, max_body_bytes=max_body_bytes)

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
    if rpc_listener is not None:
        server.rpc = _Rpc(app, make_rpc, rpc_listener)

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


class _Rpc:
    """The gRPC server beside the REST API of `app`, whose models stay until the calls to both have ended."""

    def __init__(self, app: Starlette, make: Callable[[], RpcServer], listener: socket.socket) -> None:
        self._make = make
        self._listener = listener
        self._server: RpcServer | None = None
        self._rest_lifespan = app.router.lifespan_context
        app.router.lifespan_context = self._lifespan

    async def start(self) -> None:
        host, port = self._listener.getsockname()[:2]
        server = self._make()
        self._listener.close()
        await server.start(host, port)
        self._server = server

    async def stop(self, grace_secs: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_secs)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[Any]:
        async with self._rest_lifespan(app) as state:
            yield state
            if self._server is not None:
                await self._server.wait_stopped()


class _Server(uvicorn.Server):
    """A server that calls back, with a gRPC server beside it unless `rpc` is None."""

    rpc: _Rpc | None = None

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        if self.rpc is None:
            await super().serve(sockets)
            return
        await self.rpc.start()
        try:
            await super().serve(sockets)
        finally:
            await self.rpc.stop(0)  # has ended already, unless a second signal came

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        if self.rpc is None:
            await super().shutdown(sockets)
            return
        grace_secs = self.config.timeout_graceful_shutdown
        assert grace_secs is not None, "run sets it"
        # Both refuse new requests now, and the application ends when both have answered theirs.
        await asyncio.gather(self.rpc.stop(grace_secs), super().shutdown(sockets))
