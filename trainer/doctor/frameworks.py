"""Check the installed TensorFlow, Keras, XLA, Horovod and MPI."""

import importlib.metadata
import json
import pathlib
import platform
import shutil
from collections.abc import Iterator
from typing import Any

from trainer.doctor.finding import Finding, absent, ok, problem, warning
from trainer.system.programs import output_of

_TIMEOUT_SECS = 20.0
_BUILD_HOROVOD = "make horovod"


def check_frameworks(*, wants_horovod: bool, wants_gpus: bool) -> Iterator[Finding]:
    """Check what is installed, and try it out if that takes only a moment."""
    yield ok("Python", platform.python_version())
    yield _check_tensorflow()
    yield _check_xla()
    yield from _check_horovod(wants_horovod=wants_horovod, wants_gpus=wants_gpus)
    yield _check_mpi()


def _check_tensorflow() -> Finding:
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    cuda = f"CUDA {build['cuda_version']}" if build.get("is_cuda_build") else "no CUDA"
    return ok("TensorFlow", f"{tf.__version__}, Keras {importlib.metadata.version('keras')}, built with {cuda}")


def _check_xla() -> Finding:
    """Compile and run a small function on the device that training would use."""
    import tensorflow as tf

    try:
        value = tf.function(lambda x: tf.reduce_sum(x * 2.0), jit_compile=True)(tf.ones([8])).numpy()
    except tf.errors.OpError as e:
        return problem("XLA", f"does not compile here: {str(e).splitlines()[0]}", "train with --xla off")
    if value != 16.0:
        return problem("XLA", f"compiles, but computes 8 times 2 as {value}", "train with --xla off")
    return ok("XLA", "compiles and runs")


def _check_horovod(*, wants_horovod: bool, wants_gpus: bool) -> Iterator[Finding]:
    say = problem if wants_horovod else absent
    try:
        horovod = _import_horovod()
    except ImportError as e:
        yield say("Horovod", f"not installed for this TensorFlow ({str(e).splitlines()[0]})", _BUILD_HOROVOD)
        return
    built_for = _tensorflow_of_horovod(horovod)
    import tensorflow as tf

    if built_for not in (None, tf.__version__):
        yield say("Horovod", f"built for TensorFlow {built_for}, but {tf.__version__} is installed", _BUILD_HOROVOD)
        return
    parts = {
        "Gloo": horovod.gloo_built(),
        "MPI": horovod.mpi_built(),
        "NCCL": bool(horovod.nccl_built()),
    }
    there = ", ".join(name for name, is_there in parts.items() if is_there)
    only = "" if parts["NCCL"] else "; no NCCL, so only for CPUs"
    yield ok("Horovod", f"{importlib.metadata.version('horovod')} for TensorFlow {tf.__version__}, with {there}{only}")
    if wants_gpus and not parts["NCCL"]:
        say = problem if wants_horovod else warning
        yield say(
            "Horovod",
            "built without NCCL, so --strategy horovod refuses GPUs",
            f"install nvcc and NCCL's headers (libnccl-dev), then {_BUILD_HOROVOD}; or use --strategy multiworker",
        )


def _import_horovod() -> Any:
    import horovod.tensorflow as horovod

    return horovod


def _tensorflow_of_horovod(horovod: Any) -> str | None:
    metadata = pathlib.Path(horovod.__file__).parent.parent / "metadata.json"
    try:
        return str(json.loads(metadata.read_text(encoding="utf-8"))["tensorflow"])
    except (OSError, ValueError, KeyError):
        return None


def _check_mpi() -> Finding:
    fix = "only for mpirun: install Open MPI (libopenmpi-dev on Debian), then make horovod"
    if shutil.which("mpirun") is None:
        return absent("MPI", "no mpirun", fix)
    lines = (output_of("mpirun", "--version", timeout_secs=_TIMEOUT_SECS) or "").splitlines()
    return ok("MPI", lines[0]) if lines else absent("MPI", "mpirun prints no version", fix)
