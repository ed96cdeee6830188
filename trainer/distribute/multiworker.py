"""The engine over MultiWorkerMirroredStrategy: one process on each host, with that host's replicas."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.distribute.engine import Tensor
from trainer.distribute.launchers.cluster import JOIN_TIMEOUT_SECS, join_cluster
from trainer.distribute.launchers.environments import LOCAL_INDEX_VARIABLE
from trainer.distribute.launchers.external import can_meet, find_external_worker
from trainer.distribute.mirrored import TfStrategyEngine
from trainer.distribute.topology import Device, Topology
from trainer.errors import DeviceError

# The strategy over all workers: TensorFlow joins one cluster in the life of a process.
_joined: Any = None


class MultiWorkerEngine(TfStrategyEngine):
    """An engine over `MultiWorkerMirroredStrategy`, whose collectives connect the workers."""

    def __init__(self, topology: Topology, strategy: Any, *, fusion_bytes: int | None = None) -> None:
        super().__init__(topology, strategy, fusion_bytes=fusion_bytes)
        # Traced once for each shape: a collective of Python values would be traced anew for every value.
        self._sum = tf.function(self._sum_of_first_replicas)
        self._gather = tf.function(self._gather_from_replicas)

    def gather(self, value: Any) -> np.ndarray[Any, Any]:
        gathered: np.ndarray[Any, Any] = self._gather(value).numpy()
        return gathered

    def _sum_of_one_dtype(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.topology.num_local_replicas > 1:
            return super()._sum_of_one_dtype(tensors)
        # The collective needs to know the device of a tensor, which is not set with one replica a worker.
        with tf.device(self._strategy.extended.worker_devices[0]):
            return super()._sum_of_one_dtype([tf.identity(tensor) for tensor in tensors])

    def _sum_over_workers(self, vector: Tensor) -> Tensor:
        return self._sum(vector)

    def _gather_from_replicas(self, value: Any) -> Tensor:
        stacked = self._strategy.run(lambda x: tf.expand_dims(x, 0), args=(value,))
        return self._strategy.gather(stacked, axis=0)

    def _sum_of_first_replicas(self, value: Tensor) -> Tensor:
        """Return the sum over all workers of the value that each gives, counted for its first replica alone."""

        def contribution(x: Any) -> Any:
            context = tf.distribute.get_replica_context()
            local = context.replica_id_in_sync_group % self.topology.num_local_replicas
            return tf.where(local == 0, x, tf.zeros_like(x))

        per_replica = self._strategy.run(contribution, args=(value,))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)


def find_topology(device: Device) -> Topology:
    """Return the topology of the job; on GPUs, this process takes all of them, or the one that the launcher gave it.

    Raises:
        DeviceError: this process was not started as one of several, or in a way that gives no addresses of the others.
    """
    worker = find_external_worker()
    if worker is None or not can_meet("multiworker", worker):
        by = f", only {worker.by}" if worker else ""
        raise DeviceError(
            f"--strategy multiworker found no TF_CONFIG with the addresses of all workers{by}; use --strategy horovod "
            "under this launcher, or run the command once, without it, and with --hosts or --replicas"
        )
    num_local_replicas = 1
    if device == "gpu":
        gpus = tf.config.get_visible_devices("GPU")
        if LOCAL_INDEX_VARIABLE in os.environ:
            gpus = gpus[int(os.environ[LOCAL_INDEX_VARIABLE]) :][:1]
            tf.config.set_visible_devices(gpus, "GPU")
        if not gpus:
            raise DeviceError(f"worker {worker.worker_index} has no GPU; start no more workers on a host than GPUs")
        num_local_replicas = len(gpus)
    return Topology(
        strategy="multiworker",
        device=device,
        num_local_replicas=num_local_replicas,
        num_workers=worker.num_workers,
        worker_index=worker.worker_index,
    )


def make_engine(
    topology: Topology,
    *,
    fusion_bytes: int | None = None,
    start_timeout_secs: float = JOIN_TIMEOUT_SECS,
    note: Callable[[str], None] = lambda _: None,
) -> MultiWorkerEngine:
    """Connect to the other workers; call this before anything in the process has run a TensorFlow operation.

    `note` is called with a sentence if they take long to come.
    """
    strategy = join(start_timeout_secs, note)
    return MultiWorkerEngine(topology, strategy, fusion_bytes=fusion_bytes)


def join(timeout_secs: float = JOIN_TIMEOUT_SECS, note: Callable[[str], None] = lambda _: None) -> Any:
    """Join the cluster of this process once, and return the strategy over all workers at every later call too.

    Call it before the first TensorFlow operation where one comes before `make_engine`, as in reading a saved model.
    """
    global _joined
    if _joined is None:
        worker = find_external_worker()
        assert worker is not None, "find_topology has found it"
        _joined = join_cluster(worker, timeout_secs=timeout_secs, note=note)
    return _joined
