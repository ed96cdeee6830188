"""The behaviour that engines share, on a worker whose collectives add what the other worker would give."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.distribute.engine import Engine
from trainer.distribute.topology import Topology
from trainer.launch.elastic_engine import ElasticEngine, MembersChange
from trainer.system.stop_signals import StopRequest

SECOND_OF_TWO = Topology(strategy="horovod", device="cpu", num_local_replicas=1, num_workers=2, worker_index=1)


class SecondWorker(Engine):
    """Worker 1 of 2; `chief` gives what the chief puts into each sum, in order, or raises."""

    def __init__(self, chief: Callable[[Any], Any]) -> None:
        super().__init__(SECOND_OF_TWO)
        self.chief = chief
        self.packs: list[list[Any]] = []

    def scope(self) -> Any:
        raise NotImplementedError

    def distribute(self, dataset: Any) -> Any:
        raise NotImplementedError

    def run(self, replica_fn: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    def local_values(self, value: Any) -> list[Any]:
        return [value]

    def gather(self, value: Any) -> np.ndarray[Any, Any]:
        return np.stack([self.chief(value), value])

    def _sum_of_one_dtype(self, tensors: list[Any]) -> list[Any]:
        self.packs.append([tensor.dtype for tensor in tensors])
        return [2 * tensor for tensor in tensors]

    def _sum_over_workers(self, vector: Any) -> Any:
        return self.chief(vector) + vector


def make_variables() -> list[Any]:
    return [tf.Variable([[1.0, 2.0]]), tf.Variable(3, dtype=tf.int64), tf.Variable([4.0])]


def values_of(variables: list[Any]) -> list[Any]:
    return [variable.numpy().tolist() for variable in variables]


def test_a_broadcast_assigns_the_values_of_the_chief() -> None:
    sums = {tf.float32: [float("inf"), 6.0, 7.0], tf.int64: [2**40 + 1]}
    variables = make_variables()
    SecondWorker(lambda vector: tf.constant(sums[vector.dtype], vector.dtype)).broadcast(variables)
    assert values_of(variables) == [[[float("inf"), 6.0]], 2**40 + 1, [7.0]]


def test_a_broadcast_that_fails_half_way_assigns_nothing() -> None:
    def lose_the_chief(vector: Any) -> Any:
        if vector.dtype == tf.int64:
            raise ConnectionError
        return tf.ones_like(vector)

    variables = make_variables()
    with pytest.raises(ConnectionError):
        SecondWorker(lose_the_chief).broadcast(variables)
    assert values_of(variables) == values_of(make_variables())


@pytest.mark.parametrize(("own", "other"), [(False, False), (False, True), (True, False)])
def test_all_workers_learn_of_a_flag_of_any(own: bool, other: bool) -> None:
    engine = SecondWorker(lambda vector: tf.fill(tf.shape(vector), float(other)))
    assert engine.any(own) is (own or other)
    assert [array.tolist() for array in engine.gather_from_workers(np.array([5.0]))] == [[float(other)], [5.0]]


def test_tensors_of_a_dtype_are_reduced_together_and_stay_in_order() -> None:
    engine = SecondWorker(tf.identity)
    mixed = [tf.constant(1, tf.int32), tf.constant(2.0), tf.constant(3, tf.int32), tf.constant(4.0, tf.float16)]
    assert [int(tensor) for tensor in engine.all_reduce_sum(mixed)] == [2, 4, 6, 8]
    assert engine.packs == [[tf.float16], [tf.float32], [tf.int32, tf.int32]]


class HorovodAlone:
    """Horovod, as it is for a worker whose peer gives zeros."""

    Sum = "sum"

    @staticmethod
    def allreduce(vector: Any, *, op: str) -> Any:
        assert op == HorovodAlone.Sum
        return tf.identity(vector)


def test_members_leave_a_generation_together_and_a_request_to_stop_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.distribute.horovod._import_horovod", HorovodAlone)
    asked, stop_request = [False], StopRequest()
    engine = ElasticEngine(SECOND_OF_TWO, is_asked_to_leave=lambda: asked[0], stop_request=stop_request)
    assert not engine.any(False)
    asked[0] = True
    # Nobody leaves at a barrier.
    engine.barrier()
    with pytest.raises(MembersChange):
        engine.any(False)
    assert engine.any(True)
    stop_request.is_set = True
    assert engine.any(False)
