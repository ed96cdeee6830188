"""The engine over Horovod: one process for each replica, started by horovodrun, mpirun or an MPIJob.

Horovod's Keras wrapper does not work with Keras 3; its TensorFlow functions do. "rank", "local rank" and "size" are
Horovod's words for what the rest of the project calls worker index, local index and number of workers.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.distribute.engine import Tensor, reduce_by_dtype
from trainer.distribute.launchers.external import check_size
from trainer.distribute.topology import Topology
from trainer.errors import DeviceError


class HorovodEngine:
    """Implements `engine.Engine`; a per-replica value is the tensor itself."""

    def __init__(self, topology: Topology, horovod: Any) -> None:
        self.topology = topology
        self._hvd = horovod

    def scope(self) -> Any:
        return contextlib.nullcontext()

    def distribute(self, dataset: Any) -> Any:
        if self.topology.device == "cpu":
            return dataset
        # A batch is on its way while the step before it computes.
        return dataset.apply(tf.data.experimental.prefetch_to_device("/gpu:0"))

    def run(self, replica_fn: Callable[..., Any], *args: Any) -> Any:
        return replica_fn(*args)

    def all_reduce_sum(self, tensors: list[Tensor]) -> list[Tensor]:
        return reduce_by_dtype(lambda same: list(self._hvd.grouped_allreduce(same, op=self._hvd.Sum)), tensors)

    def local_values(self, value: Any) -> list[Tensor]:
        return [value]

    def gather(self, value: Any) -> np.ndarray[Any, Any]:
        gathered: np.ndarray[Any, Any] = self._hvd.allgather(tf.expand_dims(value, 0)).numpy()
        return gathered

    def gather_from_workers(self, array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return list(self.gather(tf.constant(array)))

    def broadcast(self, variables: list[Any]) -> None:
        self._hvd.broadcast_variables(variables, root_rank=0)

    def barrier(self) -> None:
        self.any(False)

    def any(self, flag: bool) -> bool:
        return bool(self._hvd.allreduce(tf.constant(float(flag)), op=self._hvd.Sum) > 0)


def start(device: str, *, fusion_bytes: int | None = None, cycle_time_ms: float | None = None) -> Topology:
    """Initialises Horovod and returns this process's place; on GPUs, the process takes the one of its local rank.

    Args:
        fusion_bytes: how much of the gradients travels together; None leaves it to Horovod, as does `cycle_time_ms`,
            how long it waits for more.

    Raises:
        DeviceError: Horovod is not installed, or there are more processes on this host than GPUs.
    """
    horovod = _import_horovod()
    # It reads them once, when it is initialised.
    if fusion_bytes is not None:
        os.environ["HOROVOD_FUSION_THRESHOLD"] = str(fusion_bytes)
    if cycle_time_ms is not None:
        os.environ["HOROVOD_CYCLE_TIME"] = str(cycle_time_ms)
    horovod.init()
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


def stop() -> None:
    """Comes out of the job that `start` has joined, so that the process may join another."""
    _import_horovod().shutdown()


def make_engine(topology: Topology) -> HorovodEngine:
    """The engine of a process that `start` has placed."""
    return HorovodEngine(topology, _import_horovod())


def _import_horovod() -> Any:
    try:
        import horovod.tensorflow as horovod
    except ImportError as e:
        raise DeviceError(f"Horovod is not installed for this TensorFlow ({e}); build it with: make horovod") from None
    return horovod
