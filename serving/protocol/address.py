"""Bind the local server's port, and parse and format addresses of servers and models.

Nothing here needs TensorFlow, so that a port in use is reported before its slow import.
"""

import os
import re
import shlex
import socket
import urllib.parse
from typing import NamedTuple

import httpx

from trainer.errors import DeviceError, UsageError
from trainer.system.names import MAX_VERSION, parse_version

# The paths of TensorFlow Serving's REST API (http_rest_api_util.cc).
_MODEL_PATH = re.compile(
    r"(?P<base>.*?)/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    r"(?::predict|/metadata|/)?",
    re.IGNORECASE | re.DOTALL,
)


class ModelAddress(NamedTuple):
    """The address of a server, with the model, version or label if it names them."""

    server: str
    model: str | None = None
    version: int | None = None
    label: str | None = None


def parse_address(url: str) -> ModelAddress:
    """Parse "http://host:port" or "http://host:port/v1/models/NAME[/versions/N|/labels/L]".

    Raises UsageError if it is neither, or has parts that would not be sent.
    """
    expected = "expected http://host:port[/v1/models/NAME[/versions/N]]"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as e:
        raise UsageError(f"{url!r} is not an address ({e}); {expected}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is not the address of a server; {expected}")
    if parsed.query or parsed.fragment:
        raise UsageError(f"{url!r} is not the address of a server: it has a query or a fragment; {expected}")
    path = parsed.raw_path.decode("ascii")
    match = _MODEL_PATH.fullmatch(path)
    if match is None and path.strip("/"):
        raise UsageError(f"{url!r} is not the address of a server or of a model; {expected}")
    base = path if match is None else match["base"]
    server = str(parsed.copy_with(raw_path=base.encode() or b"/")).rstrip("/")
    if match is None:
        return ModelAddress(server)
    version = None if match["version"] is None else parse_version(match["version"])
    if match["version"] is not None and version is None:
        raise UsageError(f"{url!r} names a version that no server has: at most {MAX_VERSION} (2^63 - 1)")
    return ModelAddress(
        server,
        model=urllib.parse.unquote(match["model"]),
        version=version,
        label=None if match["label"] is None else urllib.parse.unquote(match["label"]),
    )


def listen(host: str, port: int, *, option: str = "--port") -> socket.socket:
    """Bind `host:port` (0: any free port), set with `option`. Connections are refused until the server runs.

    Raises DeviceError if the port is in use or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With an explicit protocol: asyncio disables Nagle's algorithm only for sockets that say they are TCP, and with it
    # every answer on a kept-alive connection waits some 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Otherwise the port of a stopped server stays in use for a minute.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as e:
        listener.close()
        reason = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else str(e)
        raise DeviceError(
            f"cannot listen on {host}:{port} ({reason}); stop what uses the port, or give another one: "
            f"{option} 0 takes any that is free"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL for clients on this machine."""
    return f"http://{target_of(listener)}"


def target_of(listener: socket.socket) -> str:
    """Return host:port for clients on this machine."""
    host, port = listener.getsockname()[:2]
    return join_host_port({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104


def join_host_port(host: str, port: int) -> str:
    """Return host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def curl_line(url: str, model_name: str, image: str = "IMAGE.jpg") -> str:
    """Return a shell command that predicts an image file of any size."""
    path = f"{url}/v1/models/{urllib.parse.quote(model_name, safe='')}:predict"
    return (
        f"""(printf '{{"instances":[{{"b64":"'; base64 < {shlex.quote(image)} | tr -d '\\n'; printf '"}}]}}') """
        f"| curl -s --data-binary @- {shlex.quote(path)}"
    )
