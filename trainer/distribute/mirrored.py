"""The engine over tf.distribute: one replica, or MirroredStrategy over the GPUs or logical CPUs of one machine."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.distribute.engine import Engine, Tensor
from trainer.distribute.topology import Topology
from trainer.system import tf_runtime


class TfStrategyEngine(Engine):
    """An engine over a `tf.distribute.Strategy` of one worker."""

    def __init__(self, topology: Topology, strategy: Any, *, fusion_bytes: int | None = None) -> None:
        """Use `strategy`, in packs of about `fusion_bytes`; None leaves their size to TensorFlow."""
        super().__init__(topology)
        self._strategy = strategy
        self._options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=fusion_bytes or 0)

    def scope(self) -> Any:
        return self._strategy.scope()

    def distribute(self, dataset: Any) -> Any:
        # Its iterator has the next batch of every replica on the way to its device while the step computes.
        return self._strategy.distribute_datasets_from_function(lambda _: dataset)

    def run(self, replica_fn: Callable[..., Any], *args: Any) -> Any:
        return self._strategy.run(replica_fn, args=args)

    def local_values(self, value: Any) -> list[Tensor]:
        return list(self._strategy.experimental_local_results(value))

    def gather(self, value: Any) -> np.ndarray[Any, Any]:
        return np.stack([part.numpy() for part in self.local_values(value)])

    def _sum_of_one_dtype(self, tensors: list[Tensor]) -> list[Tensor]:
        context = tf.distribute.get_replica_context()
        return list(context.all_reduce(tf.distribute.ReduceOp.SUM, tensors, options=self._options))

    def _sum_over_workers(self, vector: Tensor) -> Tensor:
        return vector


_strategies = itertools.count(1)


class _OwnCollectiveKeys(tf.distribute.MirroredStrategy):  # type: ignore[misc]
    """A MirroredStrategy that can live in one process with others.

    TensorFlow knows a group of devices, and each reduction in it, by numbers that start anew with every strategy; the
    second strategy of a process then finds groups of another size, and reductions of other shapes, under its numbers.
    """

    def __init__(self, devices: list[str]) -> None:
        self._collective_key_base = 1_000 * next(_strategies)
        super().__init__(devices)


def make_engine(topology: Topology, *, fusion_bytes: int | None = None) -> TfStrategyEngine:
    """Claim the devices of `topology`; call this before anything in the process has run a TensorFlow operation."""
    if topology.device == "gpu":
        devices = [f"/gpu:{i}" for i in range(topology.num_local_replicas)]
    else:
        devices = tf_runtime.split_cpu(topology.num_local_replicas)
    if topology.strategy == "single":
        return TfStrategyEngine(topology, tf.distribute.OneDeviceStrategy(devices[0]))
    return TfStrategyEngine(topology, _OwnCollectiveKeys(devices), fusion_bytes=fusion_bytes)
