"""Where the local server is found: binding its port, its address, and a line of shell that calls it.

Nothing here needs TensorFlow, so a port that is taken is told before its slow start.
"""

import os
import shlex
import socket
import urllib.parse

from trainer.errors import DeviceError


def listen(host: str, port: int) -> socket.socket:
    """Binds `host:port` (0: any free port). Until the server runs, connections are refused.

    Raises DeviceError: the port is taken, or the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # Otherwise a server that was just stopped keeps its port for a minute.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as e:
        listener.close()
        reason = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else str(e)
        raise DeviceError(
            f"cannot listen on {host}:{port} ({reason}); stop what uses the port, or give another one: "
            "--port 0 takes any that is free"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The address that a client on this machine uses."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def curl_line(url: str, model_name: str, image: str = "IMAGE.jpg") -> str:
    """A line for a shell that predicts one image file; the image goes through a pipe, so it may be of any size."""
    path = f"{url}/v1/models/{urllib.parse.quote(model_name, safe='')}:predict"
    return (
        f"""(printf '{{"instances":[{{"b64":"'; base64 < {shlex.quote(image)} | tr -d '\\n'; printf '"}}]}}') """
        f"| curl -s --data-binary @- {shlex.quote(path)}"
    )
