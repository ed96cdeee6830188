"""The installed versions, which must be the same on every worker so that all compute the same."""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping

import trainer

_PACKAGES = ("tensorflow", "keras", "numpy", "horovod")


def installed_versions() -> dict[str, str]:
    """Return versions by name; "trainer" with a hash of its source, since checkouts of one version may differ."""
    found = {"python": platform.python_version(), "trainer": f"{trainer.__version__}+{_source_hash()}"}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(by_worker: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Describe each name whose values differ, as "tensorflow is 2.21.0 on node1, 2.20.0 on node2"."""
    names = sorted({name for found in by_worker.values() for name in found})
    lines = []
    for name in names:
        values = {worker: found.get(name, "not installed") for worker, found in by_worker.items()}
        if len(set(values.values())) > 1:
            lines.append(f"{name} is " + ", ".join(f"{value} on {worker}" for worker, value in values.items()))
    return lines


@functools.cache
def _source_hash() -> str:
    root = pathlib.Path(trainer.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
