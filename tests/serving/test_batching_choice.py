"""Which queues `trainer serve` makes from its options."""

import pathlib
import threading
from collections.abc import Mapping

import numpy as np
import pytest

from serving.batching.batch_queue import BatchQueue
from serving.batching.choose_queues import choose_queues, cluster_parameters
from serving.batching.request_queue import RequestQueue, UnbatchedQueue
from serving.protocol.limits import cluster_batch_size
from serving.protocol.status import RequestError
from serving.protocol.tensors import Array
from trainer.errors import UsageError


def make(**options: object) -> RequestQueue:
    return choose_queues(**options)(lambda inputs: {"y": inputs["x"]}, "model", "signature")  # type: ignore[arg-type]


def largest(queue: RequestQueue) -> int | None:
    """The most rows that a queue takes; None: more than it could be asked for."""
    try:
        queue.submit({"x": np.zeros(5000)}).result(600)
    except RequestError as e:
        return int(e.message.rpartition(" ")[2])
    finally:
        queue.close()
    return None


def test_an_export_is_batched_as_in_the_cluster() -> None:
    queue = make(is_export=True)
    assert isinstance(queue, BatchQueue)
    assert largest(queue) == cluster_batch_size() == cluster_parameters().max_batch_size


def test_another_model_is_not_batched_unless_a_file_says_how(tmp_path: pathlib.Path) -> None:
    queue = make(is_export=False)
    assert isinstance(queue, UnbatchedQueue)
    assert largest(queue) is None
    assert largest(make(is_export=False, max_batch_size=3)) == 3
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 7 }")
    queue = make(is_export=False, parameters_file=file)
    assert isinstance(queue, BatchQueue)
    assert largest(queue) == 7


def test_without_batching_an_export_keeps_the_limit_of_the_cluster() -> None:
    queue = make(is_export=True, batching=False)
    assert isinstance(queue, UnbatchedQueue)
    assert largest(queue) == cluster_batch_size()
    assert largest(make(is_export=True, batching=False, max_batch_size=0)) is None


def test_the_options_change_the_parameters(tmp_path: pathlib.Path) -> None:
    assert largest(make(is_export=True, threads=1, max_batch_size=5)) == 5
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 4 } allowed_batch_sizes: 2 allowed_batch_sizes: 4")
    with pytest.raises(UsageError, match=r"--max-batch-size together with .* expected max_batch_size, which is 8"):
        make(is_export=True, parameters_file=file, max_batch_size=8)


def test_options_that_contradict_one_another_are_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="give only one of both"):
        make(is_export=True, batching=False, parameters_file=tmp_path / "f")
    with pytest.raises(UsageError, match="--max-batch-size 0 sets no limit, and a batch needs one; add --no-batching"):
        make(is_export=True, max_batch_size=0)
    with pytest.raises(UsageError, match="cannot read the batching parameters in"):
        make(is_export=False, parameters_file=tmp_path / "absent")


def test_each_model_has_threads_of_its_own() -> None:
    make_queue = choose_queues(is_export=True, threads=1)
    may_run, is_running = threading.Event(), threading.Event()

    def wait(inputs: Mapping[str, Array]) -> dict[str, Array]:
        is_running.set()
        assert may_run.wait(600)
        return dict(inputs)

    slow = make_queue(wait, "slow", "signature")
    fast = make_queue(dict, "fast", "signature")
    other = make_queue(dict, "slow", "other")
    x = {"x": np.zeros(1)}
    waiting = slow.submit(x)
    assert is_running.wait(600)
    behind = other.submit(x)
    assert len(fast.submit(x).result(600)["x"]) == 1
    assert not waiting.done()
    assert not behind.done()
    may_run.set()
    for queue in (slow, fast, other):
        queue.close()
    assert behind.done()
