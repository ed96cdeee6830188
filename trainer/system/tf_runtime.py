"""Start TensorFlow in this process: set what must stand before its import, and import it quietly.

Call `configure` before the first `import tensorflow` of a command; library modules then import it as usual.
"""

import contextlib
import ctypes
import gc
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.errors import DeviceError
from trainer.system import own_process, xla_cache

_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    # oneDNN kernels are off in this wheel and nearly double a CPU's images/s.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    # 2: errors only; TensorFlow's notes on CPU instructions and plugins tell a user nothing.
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Otherwise the first process takes all memory of every GPU, and a second one fails without saying so.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    # Otherwise each positioned read of gs:// fetches a block of 64 MiB or more; records are smaller than this.
    "GCS_READAHEAD_BUFFER_SIZE_BYTES": str(2**20),
}
_UNUSED_BY_US = ("sklearn", "matplotlib")
# malloc.h: parameters of mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT_BLOCK_BYTES = 32 * 2**20
# What malloc keeps at the end of each thread's heap. Without it, a heap that has become empty goes back to the system
# whatever the other thresholds say, and a training step comes to 20,000 page faults.
_KEPT_HEAP_BYTES = 64 * 2**20


def configure(*, use_gpus: bool = True, xla_cache_dir: str | None = None) -> None:
    """Set the environment of TensorFlow (what the user has set stays) and import it.

    With `use_gpus=False` the GPUs are hidden from this process. XLA keeps its programs in `xla_cache_dir`, if given.

    Raises:
        ConfigError: nothing can be kept there.
    """
    if xla_cache_dir is not None:
        xla_cache.use(pathlib.Path(xla_cache_dir))
        # At each program that it reads, TensorFlow prints as an error that it is not text but binary, as it should be.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()
    with stderr_held_back():
        with _quick_imports():
            import keras  # noqa: F401 (imported here, where it is quick)
            import tensorflow as tf

        if not use_gpus:
            tf.config.set_visible_devices([], "GPU")
        # Lists the devices once: this prints the driver's complaints, which `trainer doctor` is there to explain.
        tf.config.list_physical_devices()
    logging.getLogger("absl").addFilter(_drop_warning_of_gradients)


def _drop_warning_of_gradients(record: logging.LogRecord) -> bool:
    """Drop the warning that a SavedModel lacks the custom gradients of swish, which exports leave out on purpose."""
    return "unsaved custom gradients" not in record.getMessage()


def _keep_freed_memory() -> None:
    """Let glibc keep the blocks of records, images and activations that come and go by the thousand.

    Given back to the system each time, they cost a page fault for every 4 KiB, which is half the time of reading and
    a sixth of that of a training step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)
        libc.mallopt(_M_TOP_PAD, _KEPT_HEAP_BYTES)


@contextlib.contextmanager
def _quick_imports() -> Iterator[None]:
    """Import in the block without optional packages of Keras's that we do not use, and without collecting garbage.

    Keras imports them, if they are installed, for `keras.wrappers` and `keras.visualization`: a second. What a start
    imports stays, so that looking through it for garbage is time lost, then and in every later collection. Only in a
    command: a notebook may want them.
    """
    if not own_process.is_command or "tensorflow" in sys.modules:
        yield
        return
    hidden = [name for name in _UNUSED_BY_US if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an ImportError, which Keras expects
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
        for name in hidden:
            del sys.modules[name]


def list_gpus() -> list[Any]:
    """List the GPUs that this process may use, in order."""
    import tensorflow as tf

    return list(tf.config.get_visible_devices("GPU"))


def list_compute_capabilities(gpus: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the compute capability of each GPU, as (8, 0); (0, 0) where TensorFlow does not know it."""
    import tensorflow as tf

    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [detail.get("compute_capability", (0, 0)) for detail in details]


def split_cpu(num_devices: int) -> list[str]:
    """Divide the CPU into `num_devices` logical devices and return their names.

    Raises:
        DeviceError: TensorFlow has run already in this process with fewer of them.
    """
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    names = [f"/cpu:{i}" for i in range(num_devices)]
    if len(tf.config.get_logical_device_configuration(cpu) or []) >= num_devices:
        return names
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
        if num_devices > 1:
            # An operation that spreads over all cores would wait for those on which another replica computes.
            num_cores = len(os.sched_getaffinity(0))
            tf.config.threading.set_intra_op_parallelism_threads(max(1, num_cores // num_devices))
    except RuntimeError:
        num_there = len(tf.config.list_logical_devices("CPU"))
        if num_there < num_devices:
            raise DeviceError(
                f"{num_devices} replicas on the CPU were asked for, but TensorFlow runs with {num_there} logical "
                "devices already in this process; ask for the replicas before anything else uses TensorFlow"
            ) from None
    return names


@contextlib.contextmanager
def stderr_held_back() -> Iterator[None]:
    """Hold back what C++ code writes to file descriptor 2 (before logging is set up, no setting silences it).

    Where the body fails, all that was held back is printed: it is then the explanation.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
