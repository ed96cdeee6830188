"""Proxies in the environment, and the way of the workers around them.

TensorFlow's workers speak gRPC with each other, and gRPC sends that through http_proxy and the like, to a proxy that
knows nothing of this job: a connection to the very same machine then waits in silence.
"""

import os
import urllib.parse
from collections.abc import Iterable, MutableMapping

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
# Where it is set, gRPC looks at it and not at no_proxy.
_EXCEPTIONS_OF_GRPC = "no_grpc_proxy"


def go_directly(addresses: Iterable[str], environment: MutableMapping[str, str] = os.environ) -> None:
    """Has this process reach `addresses`, as HOST:PORT, without a proxy: their hosts become exceptions."""
    hosts = [address.rpartition(":")[0].strip("[]") for address in addresses]
    known = [entry.strip() for name in _EXCEPTIONS for entry in environment.get(name, "").split(",") if entry.strip()]
    for name in _EXCEPTIONS:
        environment[name] = ",".join(dict.fromkeys([*known, *hosts]))
    if _EXCEPTIONS_OF_GRPC in environment:
        of_grpc = [entry for entry in environment[_EXCEPTIONS_OF_GRPC].split(",") if entry.strip()]
        environment[_EXCEPTIONS_OF_GRPC] = ",".join(dict.fromkeys([*of_grpc, *hosts]))


def describe_proxies() -> str:
    """The proxies that are set, as "http_proxy is http://proxy:3128", without passwords; "" where there are none."""
    names = [spelled for name in _PROXIES for spelled in (name, name.upper()) if os.environ.get(spelled)]
    return ", ".join(f"{name} is {_without_password(os.environ[name])}" for name in names)


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
