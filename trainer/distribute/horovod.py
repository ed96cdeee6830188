"""The engine over Horovod: one process for each replica, started by horovodrun, mpirun or an MPIJob.

Horovod's Keras wrapper does not work with Keras 3; its TensorFlow functions do. "rank", "local rank" and "size" are
Horovod's words for what the rest of the project calls worker index, local index and number of workers.
"""

import atexit
import contextlib
import math
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.distribute.engine import Engine, Tensor
from trainer.distribute.launchers.cluster import JOIN_TIMEOUT_SECS
from trainer.distribute.launchers.environments import GLOO_TIMEOUT_VARIABLE
from trainer.distribute.launchers.external import check_size, find_external_worker
from trainer.distribute.launchers.proxies import describe_proxies
from trainer.distribute.launchers.waiting import told
from trainer.distribute.topology import Topology
from trainer.errors import DeviceError

# Gloo's own timeout (horovod/common/gloo/gloo_context.cc), and how much earlier `start` gives up.
_GLOO_TIMEOUT_SECS = 30
_GIVE_UP_FIRST_SECS = 2


class HorovodEngine(Engine):
    """The engine of a process that `start` has placed; a per-replica value is the tensor itself."""

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        self._hvd = _import_horovod()

    def scope(self) -> Any:
        return contextlib.nullcontext()

    def distribute(self, dataset: Any) -> Any:
        if self.topology.device == "cpu":
            return dataset
        # A batch is on its way while the step before it computes.
        return dataset.apply(tf.data.experimental.prefetch_to_device("/gpu:0"))

    def run(self, replica_fn: Callable[..., Any], *args: Any) -> Any:
        return replica_fn(*args)

    def local_values(self, value: Any) -> list[Tensor]:
        return [value]

    def gather(self, value: Any) -> np.ndarray[Any, Any]:
        gathered: np.ndarray[Any, Any] = self._hvd.allgather(tf.expand_dims(value, 0)).numpy()
        return gathered

    def _sum_of_one_dtype(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(self._hvd.grouped_allreduce(tensors, op=self._hvd.Sum))

    def _sum_over_workers(self, vector: Tensor) -> Tensor:
        return self._hvd.allreduce(vector, op=self._hvd.Sum)


def start(
    device: str,
    *,
    fusion_bytes: int | None = None,
    cycle_time_ms: float | None = None,
    start_timeout_secs: float | None = None,
    note: Callable[[str], None] | None = None,
) -> Topology:
    """Initialize Horovod and return the topology of the job; on GPUs, the process takes the one of its local rank.

    Args:
        device: "cpu" or "gpu".
        fusion_bytes: the size of a fused all-reduce; None leaves it to Horovod.
        cycle_time_ms: how long Horovod waits for more tensors to fuse; None leaves it to Horovod.
        start_timeout_secs: how long to wait for the other workers; None: as long as Horovod does.
        note: called with a sentence if the others take long to come. None: the caller watches over the start, and if
            the others do not come, Horovod may abort the process.

    Raises:
        DeviceError: Horovod is not installed, cannot add up what GPUs compute or finds other workers than there are,
            or there are more processes on this host than GPUs.
    """
    if device == "gpu":
        check_gpu_reductions()
    horovod = _import_horovod()
    # Horovod reads them once, when it is initialized.
    if fusion_bytes is not None:
        os.environ["HOROVOD_FUSION_THRESHOLD"] = str(fusion_bytes)
    if cycle_time_ms is not None:
        os.environ["HOROVOD_CYCLE_TIME"] = str(cycle_time_ms)
    if note is None:
        horovod.init()
    else:
        _initialize(horovod, _find_timeout_secs(start_timeout_secs), note)
    check_size(horovod.size())
    if device == "gpu":
        gpus = tf.config.list_physical_devices("GPU")
        if horovod.local_rank() >= len(gpus):
            raise DeviceError(
                f"worker {horovod.rank()} is process {horovod.local_rank()} of its host, which has {len(gpus)} GPUs; "
                "start no more processes on a host than it has GPUs"
            )
        tf.config.set_visible_devices(gpus[horovod.local_rank()], "GPU")
    return Topology(
        strategy="horovod",
        device="gpu" if device == "gpu" else "cpu",
        num_local_replicas=1,
        num_workers=horovod.size(),
        worker_index=horovod.rank(),
    )


def has_nccl() -> bool | None:
    """Return True if Horovod reduces on GPUs with NCCL; None if it is not installed."""
    try:
        return bool(_import_horovod().nccl_built())
    except DeviceError:
        return None


def check_gpu_reductions() -> None:
    """Raise DeviceError if Horovod is not installed, or would reduce the gradients of GPUs on the CPU."""
    if not _import_horovod().nccl_built():
        raise without_nccl("this machine")


def without_nccl(host: str, *, is_installed: bool = True) -> DeviceError:
    """Return the error for a Horovod on `host` that cannot reduce on its GPUs."""
    found = "is built without it, so that every gradient would pass through the CPU" if is_installed else "is not there"
    return DeviceError(
        f"--strategy horovod on GPUs needs a Horovod with NCCL, and the one on {host} {found}; install nvcc and NCCL's "
        "headers there (libnccl-dev, or HOROVOD_NCCL_HOME) and build it with: make horovod; or use --strategy "
        "multiworker, for which TensorFlow brings NCCL along"
    )


def _initialize(horovod: Any, timeout_secs: float, note: Callable[[str], None]) -> None:
    """Initialize Horovod in a thread; raise DeviceError if the other workers do not come within `timeout_secs`.

    Horovod waits in C++ code that cannot be interrupted, and aborts the process when it gives up by itself.
    """
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            horovod.init()
        except Exception as e:
            failures.append(e)

    waiting = threading.Thread(target=initialize, name="horovod.init", daemon=True)
    waiting.start()
    try:
        with told(note, lambda: f"{_describe_wait('waits')}, up to {timeout_secs:g} s"):
            waiting.join(timeout_secs)
    finally:
        if waiting.is_alive():
            # At the end of the process, Horovod would wait for that thread.
            atexit.register(os._exit, DeviceError.exit_status)
    if failures:
        raise failures[0]
    if waiting.is_alive():
        worker = find_external_worker()
        by = f", or, where nobody starts them, put {worker.without} before the command" if worker is not None else ""
        raise DeviceError(
            f"{_describe_wait(f'has waited {timeout_secs:g} s')}, without an answer; see that every worker was "
            "started, give those that start later more time with --set distribute.start_timeout_secs=1800"
            f"{by}"
        )


def _find_timeout_secs(asked: float | None) -> float:
    """Return how long to wait for the others: `asked`, or a little less than Gloo, which must not give up first.

    Gloo's timeout at the start is also that for a silent peer later, so it is changed only if `asked` is longer.
    """
    worker = find_external_worker()
    if worker is None or worker.by != "HOROVOD_RANK":
        return asked or JOIN_TIMEOUT_SECS
    text = os.environ.get(GLOO_TIMEOUT_VARIABLE, "")
    gloo_secs = int(text) if text.isdecimal() else _GLOO_TIMEOUT_SECS
    if asked is None:
        return max(1.0, gloo_secs - _GIVE_UP_FIRST_SECS)
    os.environ[GLOO_TIMEOUT_VARIABLE] = str(max(gloo_secs, math.ceil(asked) + _GIVE_UP_FIRST_SECS))
    return asked


def _describe_wait(does: str) -> str:
    worker = find_external_worker()
    if worker is None:
        return f"this process {does} for Horovod to start"
    proxies = describe_proxies()
    return (
        f"worker {worker.worker_index} {does} for the other {worker.num_workers - 1} of {worker.num_workers} workers "
        f"({worker.evidence}{f', and {proxies}' if proxies else ''})"
    )


def stop() -> None:
    """Leave the job that `start` has joined, so that the process may join another."""
    _import_horovod().shutdown()


def is_lost_peer(error: Exception) -> bool:
    """Return True if a collective failed or was given up because another worker is gone."""
    return isinstance(error, tf.errors.OpError) and "Horovod" in str(error)


def _import_horovod() -> Any:
    try:
        import horovod.tensorflow as horovod
    except ImportError as e:
        raise DeviceError(f"Horovod is not installed for this TensorFlow ({e}); build it with: make horovod") from None
    return horovod
