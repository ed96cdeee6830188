"""Run Horovod's rendezvous server in the launcher, which imports no TensorFlow."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def rendezvous_server() -> Iterator[tuple[Any, int]]:
    """Run a server of Horovod, `init` of which takes the slots of a job; yields it and its port.

    Raises ImportError where Horovod is not installed.
    """
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    port = server.start()
    try:
        yield server, port
    finally:
        server.stop()
        # It stops listening, and leaves the socket open.
        server._httpd.server_close()


def make_slot(**fields: Any) -> Any:
    """Return a worker of a job in Horovod's words, its host, ranks and sizes."""
    from horovod.runner.common.util.hosts import SlotInfo

    return SlotInfo(**fields)
