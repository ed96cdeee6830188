"""The engine over MultiWorkerMirroredStrategy: one process on each host, with that host's replicas."""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.distribute.launchers.external import find_place
from trainer.distribute.tf_strategy import TfStrategyEngine
from trainer.distribute.topology import Device, Topology
from trainer.errors import DeviceError


class MultiWorkerEngine(TfStrategyEngine):
    """Implements `engine.Engine`; what one worker must not do alone goes through the strategy's collectives."""

    def __init__(self, topology: Topology, strategy: Any) -> None:
        super().__init__(topology, strategy)
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

    def broadcast(self, variables: list[Any]) -> None:
        for variable in variables:
            value = tf.convert_to_tensor(self.first(variable))
            # Only the first replica of the chief puts something into the sum. Adding zeros changes no value, and whole
            # numbers and booleans go the same way as bytes.
            total = self._sum(value if self.topology.is_chief else tf.zeros_like(value))
            variable.assign(total)

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


def start(device: Device, num_local_replicas: int) -> tuple[Topology, Any]:
    """This process's place, and the strategy, which connects to the other workers.

    Called before anything else in the process runs a TensorFlow operation.

    Raises:
        DeviceError: nobody started this process as one of several.
    """
    place = find_place()
    if place is None:
        raise DeviceError(
            "--strategy multiworker runs one process on each host, and nobody started this one as such; give --hosts, "
            "or TF_CONFIG with the addresses of all workers"
        )
    if "TF_CONFIG" in os.environ:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    elif place.by == "SLURM_PROCID":
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
    else:
        raise DeviceError(
            f"--strategy multiworker needs the addresses of all workers in TF_CONFIG, and this process has {place.by} "
            "alone; use --strategy horovod under this launcher"
        )
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    topology = Topology(
        strategy="multiworker",
        device=device,
        num_local_replicas=num_local_replicas,
        num_workers=place.num_workers,
        worker_index=place.worker_index,
    )
    return topology, strategy
