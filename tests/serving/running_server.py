"""A real uvicorn server in a thread of the test process."""

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
