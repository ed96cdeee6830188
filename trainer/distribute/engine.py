"""The interface between training and a distribution strategy; everything above is written once against it."""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.distribute.topology import Topology

Tensor = Any


class Engine(abc.ABC):
    """Runs functions on every replica of a job and adds up what they compute.

    A "per-replica value" holds one tensor for each replica of this worker; on a single replica it may be the tensor.
    A subclass implements the abstract methods.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    @abc.abstractmethod
    def scope(self) -> Any:
        """Return a context manager: a variable made inside has a copy on every replica of this worker."""

    @abc.abstractmethod
    def distribute(self, dataset: Any) -> Any:
        """Return an iterable of per-replica values; `dataset` yields the elements of this worker's replicas in turn."""

    @abc.abstractmethod
    def run(self, replica_fn: Callable[..., Any], *args: Any) -> Any:
        """Call `replica_fn` on every replica with its part of the per-replica `args`; from inside a tf.function."""

    @abc.abstractmethod
    def local_values(self, value: Any) -> list[Tensor]:
        """Return the tensors of this worker's replicas of a per-replica value: [num_local_replicas], in their order."""

    @abc.abstractmethod
    def gather(self, value: Any) -> np.ndarray[Any, Any]:
        """Return the tensors of all replicas of all workers, stacked in their order.

        Args:
            value: a per-replica value of tensors [...] of one shape.

        Returns:
            An array [num_replicas, ...], the same on every worker.
        """

    @abc.abstractmethod
    def _sum_of_one_dtype(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the sums over all replicas of all workers of `tensors`, which have one dtype."""

    @abc.abstractmethod
    def _sum_over_workers(self, vector: Tensor) -> Tensor:
        """Return the sum over all workers of the tensor that each gives; called outside of `replica_fn`."""

    def all_reduce_sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the sums over all replicas of all workers; called inside `replica_fn`, by all with the same shapes.

        Tensors of one dtype travel together, in packs, and the dtypes always in the same order. A tape can
        differentiate it.
        """
        if self.topology.num_replicas == 1:
            return tensors
        results = list(tensors)
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            indices = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            for i, reduced in zip(indices, self._sum_of_one_dtype([tensors[i] for i in indices]), strict=True):
                results[i] = reduced
        return results

    def gather_from_workers(self, array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Return the array of each worker, in their order; all give arrays of the same shape."""
        if self.topology.num_workers == 1:
            return [array]
        # Every replica gathers; those of one worker give the same.
        return list(self.gather(tf.constant(array))[:: self.topology.num_local_replicas])

    def broadcast(self, variables: list[Any]) -> None:
        """Assign the chief's values to `variables` on every worker, once all of them have arrived.

        They travel as one vector for each dtype: a collective for each variable would be traced for each shape, and
        the names of variables depend on what a process has built before.
        """
        if self.topology.num_workers == 1:
            return
        groups, vectors = [], []
        for dtype in sorted({variable.dtype for variable in variables}, key=str):
            groups.append([variable for variable in variables if variable.dtype == dtype])
            values = [tf.reshape(self.local_values(variable)[0], [-1]) for variable in groups[-1]]
            vector = tf.concat(values, axis=0)
            # Only the chief puts something into the sum, and adding zeros changes no value.
            vectors.append(self._sum_over_workers(vector if self.topology.is_chief else tf.zeros_like(vector)))
        for group, vector in zip(groups, vectors, strict=True):
            parts = tf.split(vector, [variable.shape.num_elements() for variable in group])
            for variable, part in zip(group, parts, strict=True):
                variable.assign(tf.reshape(part, variable.shape))

    def barrier(self) -> None:
        """Return once every worker has called this."""
        self._is_any(False)

    def wants_stop(self, flag: bool) -> bool:
        """Return True if this worker, of which `flag` asks it, or its engine wants all to stop at the same step."""
        return flag

    def agrees_to_stop(self, flag: bool) -> bool:
        """Return True when all workers have seen in a step that one of them wants to stop; called by all of them."""
        return True

    def any(self, flag: bool) -> bool:
        """Return True if `flag` is true on any worker; called by all of them."""
        return self._is_any(flag)

    def _is_any(self, flag: bool) -> bool:
        return flag if self.topology.num_workers == 1 else bool(self._sum_over_workers(tf.constant(float(flag))) > 0)
