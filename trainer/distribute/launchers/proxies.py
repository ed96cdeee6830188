"""Keep the traffic between workers off the proxies of the environment.

TensorFlow's workers use gRPC, which connects through http_proxy and the like. A proxy cannot reach the workers, and
even a connection to the same machine then hangs without an error.
"""

import os
import urllib.parse
from collections.abc import Iterable, MutableMapping

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
# If it is set, gRPC reads it and not no_proxy.
_EXCEPTIONS_OF_GRPC = "no_grpc_proxy"


def go_directly(addresses: Iterable[str], environment: MutableMapping[str, str] = os.environ) -> None:
    """Add the hosts of `addresses`, each HOST:PORT, to the exceptions of the proxies, for this process."""
    hosts = [address.rpartition(":")[0].strip("[]") for address in addresses]
    known = [entry.strip() for name in _EXCEPTIONS for entry in environment.get(name, "").split(",") if entry.strip()]
    for name in _EXCEPTIONS:
        environment[name] = ",".join(dict.fromkeys([*known, *hosts]))
    if _EXCEPTIONS_OF_GRPC in environment:
        of_grpc = [entry for entry in environment[_EXCEPTIONS_OF_GRPC].split(",") if entry.strip()]
        environment[_EXCEPTIONS_OF_GRPC] = ",".join(dict.fromkeys([*of_grpc, *hosts]))


def describe_proxies() -> str:
    """Describe the proxies that are set, as "http_proxy is http://proxy:3128", without passwords; "" if none is set."""
    names = [spelled for name in _PROXIES for spelled in (name, name.upper()) if os.environ.get(spelled)]
    return ", ".join(f"{name} is {_without_password(os.environ[name])}" for name in names)


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
