"""The engine over MultiWorkerMirroredStrategy: one process on each host, with that host's replicas."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.distribute.launchers.cluster import JOIN_TIMEOUT_SECS, join_cluster
from trainer.distribute.launchers.environments import LOCAL_INDEX_VARIABLE
from trainer.distribute.launchers.external import can_meet, find_place
from trainer.distribute.mirrored import TfStrategyEngine
from trainer.distribute.topology import Device, Topology
from trainer.errors import DeviceError


class MultiWorkerEngine(TfStrategyEngine):
    """Implements `engine.Engine`; what one worker must not do alone goes through the strategy's collectives."""

    def __init__(self, topology: Topology, strategy: Any, *, fusion_bytes: int | None = None) -> None:
        super().__init__(topology, strategy, fusion_bytes=fusion_bytes)
        # Traced once for each shape: a collective of Python values would be traced anew for every value.
        self._sum = tf.function(self._sum_over_replicas)
        self._gather = tf.function(self._gather_from_replicas)

    def all_reduce_sum(self, tensors: list[Any]) -> list[Any]:
        if self.topology.num_local_replicas > 1:
            return super().all_reduce_sum(tensors)
        # With one replica a worker, nothing says on which device a tensor is, and the collective wants to know.
        with tf.device(self._strategy.extended.worker_devices[0]):
            return super().all_reduce_sum([tf.identity(tensor) for tensor in tensors])

    def gather(self, value: Any) -> np.ndarray[Any, Any]:
        gathered: np.ndarray[Any, Any] = self._gather(value).numpy()
        return gathered

    def gather_from_workers(self, array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        # Every replica gathers; those of one worker give the same.
        return list(self.gather(tf.constant(array))[:: self.topology.num_local_replicas])

    def broadcast(self, variables: list[Any]) -> None:
        # One vector for each kind of number: a collective for each variable would be traced for each shape.
        for dtype in sorted({variable.dtype for variable in variables}, key=str):
            of_dtype = [variable for variable in variables if variable.dtype == dtype]
            values = [tf.convert_to_tensor(self.local_values(variable)[0]) for variable in of_dtype]
            flat = tf.concat([tf.reshape(value, [-1]) for value in values], axis=0)
            # Only the chief puts something into the sum, and adding zeros changes no value.
            total = self._sum(flat if self.topology.is_chief else tf.zeros_like(flat))
            parts = tf.split(total, [tf.size(value) for value in values])
            for variable, value, part in zip(of_dtype, values, parts, strict=True):
                variable.assign(tf.reshape(part, value.shape))

    def barrier(self) -> None:
        self.any(False)

    def any(self, flag: bool) -> bool:
        return bool(self._sum(tf.constant(float(flag))) > 0)

    def _gather_from_replicas(self, value: Any) -> Any:
        stacked = self._strategy.run(lambda x: tf.expand_dims(x, 0), args=(value,))
        return self._strategy.gather(stacked, axis=0)

    def _sum_over_replicas(self, value: Any) -> Any:
        """The sum over all workers of the value that each gives, counted for its first replica alone."""

        def contribution(x: Any) -> Any:
            context = tf.distribute.get_replica_context()
            local = context.replica_id_in_sync_group % self.topology.num_local_replicas
            return tf.where(local == 0, x, tf.zeros_like(x))

        per_replica = self._strategy.run(contribution, args=(value,))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)


def find_topology(device: Device) -> Topology:
    """This process's place among the workers; on GPUs it takes all there are, or the one that the launcher gave it.

    Raises:
        DeviceError: nobody started this process as one of several, or not in a way that says where the others are.
    """
    place = find_place()
    if place is None or not can_meet("multiworker", place):
        by = f", only {place.by}" if place else ""
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
            raise DeviceError(f"worker {place.worker_index} has no GPU; start no more workers on a host than GPUs")
        num_local_replicas = len(gpus)
    return Topology(
        strategy="multiworker",
        device=device,
        num_local_replicas=num_local_replicas,
        num_workers=place.num_workers,
        worker_index=place.worker_index,
    )


def make_engine(
    topology: Topology,
    *,
    fusion_bytes: int | None = None,
    start_timeout_secs: float = JOIN_TIMEOUT_SECS,
    note: Callable[[str], None] = lambda _: None,
) -> MultiWorkerEngine:
    """Connects to the other workers; before anything else in the process has run a TensorFlow operation.

    `note` is told where they are long in coming.
    """
    place = find_place()
    assert place is not None, "find_topology has found it"
    strategy = join_cluster(place, timeout_secs=start_timeout_secs, note=note)
    return MultiWorkerEngine(topology, strategy, fusion_bytes=fusion_bytes)
