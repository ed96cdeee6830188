"""Check the GPUs: the driver, what TensorFlow finds, and each CUDA library that TensorFlow loads."""

import ctypes
import importlib.util
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.doctor.finding import Finding, absent, ok, problem
from trainer.system.nvidia_smi import list_driver_gpus

# The libraries that TensorFlow loads at run time, by the major version of CUDA that it was built for, and the NVIDIA
# package with each (xla/tsl/platform/default/dso_loader.cc).
_LIBRARIES = {
    "12": {
        "libcudart.so.12": "nvidia-cuda-runtime-cu12",
        "libcublas.so.12": "nvidia-cublas-cu12",
        "libcublasLt.so.12": "nvidia-cublas-cu12",
        "libcufft.so.11": "nvidia-cufft-cu12",
        "libcusolver.so.11": "nvidia-cusolver-cu12",
        "libcusparse.so.12": "nvidia-cusparse-cu12",
        "libcudnn.so.9": "nvidia-cudnn-cu12",
        "libcupti.so.12": "nvidia-cuda-cupti-cu12",
        "libnvJitLink.so.12": "nvidia-nvjitlink-cu12",
    }
}
_NCCL = ("libnccl.so.2", "nvidia-nccl-cu12")


def check_gpus(num_gpus_wanted: int | None) -> Iterator[Finding]:
    """Check the driver, the libraries and the GPUs that TensorFlow finds; `num_gpus_wanted` None: any number."""
    names = gpus_of_driver()
    num_found = len(_gpus_of_tensorflow())
    yield _check_driver(names, is_wanted=num_gpus_wanted is not None)
    missing = list(_missing_libraries())
    if names:
        yield from _check_libraries(missing)
    yield _check_tensorflow(num_found, len(names or []), num_gpus_wanted, missing)
    if num_found > 1:
        yield _check_nccl()


def gpus_of_driver() -> list[str] | None:
    """Return the names of the GPUs that the driver lists; None if there is no driver."""
    found = list_driver_gpus()
    if found is None:
        return None
    return [", ".join(filter(None, [gpu.name or "a GPU without a name", gpu.driver])) for gpu in found]


def _check_driver(names: Sequence[str] | None, *, is_wanted: bool) -> Finding:
    if names:
        return ok("GPU driver", "; ".join(names))
    say = problem if is_wanted else absent
    return say(
        "GPU driver",
        "nvidia-smi is missing, fails, or lists no GPU",
        "for GPUs, install NVIDIA's driver; start a container with --gpus all (NVIDIA Container Toolkit)",
    )


def _check_libraries(missing: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    if not missing:
        yield ok("CUDA libraries", "all that TensorFlow loads")
    for library, package in missing:
        yield problem("CUDA libraries", f"{library} is not found", f"install the extra cuda of trainer, or {package}")


def _check_tensorflow(
    num_found: int, num_of_driver: int, num_wanted: int | None, missing: Sequence[tuple[str, str]]
) -> Finding:
    text = f"TensorFlow finds {num_found}"
    if num_wanted is not None and num_found < num_wanted:
        fix = f"use --gpus {num_found}" if num_found else "use --device cpu --replicas 2, or fix the lines above"
        return problem("GPUs", f"{text}, {num_wanted} asked for", fix)
    if num_found < num_of_driver:
        why = f"{missing[0][0]} is missing" if missing else "check CUDA_VISIBLE_DEVICES and the version of the driver"
        return problem("GPUs", f"{text}, the driver lists {num_of_driver}", f"{why}; install the extra cuda of trainer")
    return (
        ok("GPUs", text)
        if num_found
        else absent("GPUs", text, "none needed: training runs on the CPU (--device cpu --replicas 2)")
    )


def _check_nccl() -> Finding:
    library, package = _NCCL
    if _is_loadable(library):
        return ok("NCCL", f"{library} loads")
    return problem("NCCL", f"{library} is not found", f"install the extra cuda of trainer, or {package}")


def _gpus_of_tensorflow() -> list[Any]:
    from trainer.system import tf_runtime

    return tf_runtime.list_gpus()


def _missing_libraries() -> Iterator[tuple[str, str]]:
    """Yield (library, package) of each library that TensorFlow would not find."""
    import tensorflow as tf

    major = str(tf.sysconfig.get_build_info().get("cuda_version") or "").partition(".")[0]
    for library, package in _LIBRARIES.get(major, {}).items():
        if not _is_loadable(library):
            yield library, package


def _is_loadable(library: str) -> bool:
    """Search as TensorFlow does: the paths of the loader, then the folders of NVIDIA's packages."""
    candidates = [library, *(str(folder / library) for folder in _package_folders())]
    for candidate in candidates:
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        return True
    return False


def _package_folders() -> list[pathlib.Path]:
    found = importlib.util.find_spec("nvidia")
    roots = list(found.submodule_search_locations or []) if found else []
    return [folder for root in roots for folder in sorted(pathlib.Path(root).glob("*/lib"))]
