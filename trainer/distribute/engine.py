"""What the training loop needs of a distribution strategy; everything above is written once against this."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from trainer.distribute.topology import Topology

Tensor = Any


class Engine(Protocol):
    """Runs functions on every replica and lets them add up tensors.

    A "per-replica value" holds one tensor for each replica of this worker; on a single replica it may be the tensor.
    """

    topology: Topology

    def scope(self) -> Any:
        """A context manager: variables made inside have a copy on every replica."""

    def distribute(self, dataset: Any) -> Any:
        """An iterable of per-replica values; `dataset` yields the elements of this worker's replicas in turn."""

    def run(self, replica_fn: Callable[..., Any], *args: Any) -> Any:
        """Calls `replica_fn` on every replica with its part of the per-replica `args`; from inside a tf.function."""

    def all_reduce_sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums over all replicas of all workers; called inside `replica_fn`, by all with the same shapes.

        Tensors of one dtype travel together, in packs. A tape can differentiate it.
        """

    def local_values(self, value: Any) -> list[Tensor]:
        """The tensors of this worker's replicas of a per-replica value, in their order."""

    def gather(self, value: Any) -> np.ndarray[Any, Any]:
        """The tensors of all replicas of all workers, stacked in their order: [num_replicas, ...]."""

    def gather_from_workers(self, array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """What each worker gives, in their order: arrays of the same shape on all of them."""

    def broadcast(self, variables: list[Any]) -> None:
        """Gives `variables` the chief's values on every worker."""

    def barrier(self) -> None:
        """Returns once every worker has come here."""

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any worker; called by all of them."""


def reduce_by_dtype(reduce: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """Calls `reduce` once for each dtype among `tensors`, always in the same order, and puts the results in place."""
    results = list(tensors)
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        for i, reduced in zip(places, reduce([tensors[i] for i in places]), strict=True):
            results[i] = reduced
    return results
