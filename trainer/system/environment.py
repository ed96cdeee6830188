"""Record the machine and the versions that a run was made with: `RUN/environment.json`, a format of this module."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any, Final

import psutil

import trainer
from trainer.system.nvidia_smi import list_driver_gpus
from trainer.system.programs import output_of

SCHEMA_VERSION: Final = 1

_PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "horovod",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "ai-edge-litert",
    "scikit-learn",
    "pillow",
    "pydantic",
)
_VARIABLES = ("XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TF_CONFIG", "TF_DETERMINISTIC_OPS")
# TensorFlow's own prefixes one by one, and not all of TF_: TF_VAR_ and TF_TOKEN_ are Terraform's, and hold secrets.
_VARIABLE_PREFIXES = (
    "TF_CPP_",
    "TF_CUDNN_",
    "TF_ENABLE_",
    "TF_DISABLE_",
    "TF_FORCE_",
    "TF_GPU_",
    "TF_NUM_",
    "TF_USE_",
    "TF_XLA_",
)


def collect(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Collect everything about this machine and installation that may explain a figure; holds JSON values only.

    What is not known here (no git checkout, no GPU, no driver) is null or an empty list. TensorFlow is imported
    but not initialised: devices may be configured before or after. `argv` is the command line to record, that of this
    process by default.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv if argv is None else argv),
        "trainer": {"version": trainer.__version__, **_git_state()},
        "python": platform.python_version(),
        "os": platform.platform(),
        "host": platform.node(),
        "cpu": {
            "model": cpu_model(),
            "num_physical_cores": psutil.cpu_count(logical=False),
            "num_logical_cores": psutil.cpu_count(),
            "num_usable_cores": _num_usable_cores(),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "tensorflow_build": _tensorflow_build(),
        "gpus": _gpus(),
        "variables": recorded_variables(os.environ.items()),
    }


def recorded_variables(variables: Any) -> dict[str, str]:
    """Return those of (name, value) pairs that change how TensorFlow computes; nothing else leaves the process."""
    return {k: v for k, v in sorted(variables) if k in _VARIABLES or k.startswith(_VARIABLE_PREFIXES)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any]:
    """Return the commit of the checkout that this module lies in, and whether files were changed since."""
    root = pathlib.Path(__file__).resolve().parents[2]
    commit = output_of("git", "-C", str(root), "rev-parse", "--verify", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"git_commit": None, "git_dirty": None}
    changes = output_of("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def cpu_model() -> str | None:
    """Return this machine's processor as its kernel names it."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return found[1].strip()
    return platform.processor() or None


def _num_usable_cores() -> int | None:
    """Count the cores that this process may use; a container or `taskset` may leave fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _tensorflow_build() -> dict[str, Any]:
    import tensorflow as tf

    info = tf.sysconfig.get_build_info()
    return {key: info.get(key) for key in ("is_cuda_build", "cuda_version", "cudnn_version")}


def _gpus() -> list[dict[str, Any]]:
    """List the GPUs that TensorFlow sees, with driver and memory from nvidia-smi, null where it is not there."""
    import tensorflow as tf

    of_driver = list_driver_gpus() or []
    gpus = []
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        name, capability = details.get("device_name"), details.get("compute_capability")
        # TensorFlow and the driver may number devices differently, so they are matched by name; a name whose
        # devices differ (MIG slices, say) has no one memory size.
        known = {(gpu.memory_bytes, gpu.driver) for gpu in of_driver if gpu.name == name}
        memory_bytes, driver = known.pop() if len(known) == 1 else (None, None)
        gpus.append(
            {
                "name": name,
                "compute_capability": ".".join(map(str, capability)) if capability else None,
                "memory_bytes": memory_bytes,
                "driver": driver,
            }
        )
    return gpus
