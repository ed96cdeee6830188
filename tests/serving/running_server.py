"""Real servers, REST and gRPC, in a thread of the test process."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from serving.protocol import address


@contextlib.contextmanager
def running_server(app: Any) -> Iterator[str]:
    """Runs `app` on a free port in a thread; gives its address."""
    listener = address.listen("127.0.0.1", 0)
    url = address.url_of(listener)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="error", timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=600)
        assert not thread.is_alive()


@contextlib.contextmanager
def running_rpc(models: Any, *, grace_secs: float = 60, **options: Any) -> Iterator[tuple[str, Any]]:
    """Runs a gRPC server over `models` on a free port in a thread; gives its address, and its Inference."""
    from serving.inference.inference import Inference
    from serving.rpc.rpc_server import RpcServer
    from serving.server.services import all_services

    started: Any = threading.Event()
    told: dict[str, Any] = {}

    async def serve() -> None:
        inference = Inference(models)
        max_body_bytes = options.pop("max_body_bytes", 1_000_000)
        services = all_services(inference, max_body_bytes=max_body_bytes, **options)
        server = RpcServer(inference, services, max_body_bytes=max_body_bytes)
        told.update(port=await server.start("127.0.0.1", 0), inference=inference, stop=asyncio.Event())
        told["loop"] = asyncio.get_running_loop()
        started.set()
        await told["stop"].wait()
        await server.stop(grace_secs)
        inference.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(timeout=600)
    try:
        yield f"127.0.0.1:{told['port']}", told["inference"]
    finally:
        told["loop"].call_soon_threadsafe(told["stop"].set)
        thread.join(timeout=600)
        assert not thread.is_alive()
