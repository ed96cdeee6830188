"""Batches by threads: what is joined, when it runs, and what happens to each of the requests in it."""

import concurrent.futures
import contextlib
import gc
import itertools
import queue as queue_module
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching.batch_queue import BatchQueue
from serving.batching.clock import Clock
from serving.batching.parameters import BatchingParameters
from serving.batching.request_queue import MAX_WAITING_BYTES, UnbatchedQueue
from serving.batching.scheduler import BatchScheduler
from serving.monitoring.metrics import Metrics
from serving.protocol.status import Code, RequestError, invalid
from serving.protocol.tensors import Array

PATIENCE_SECS = 600  # never reached: what is waited for comes, or the test is about to fail
LONG_MICROS = 60_000_000


class OwnClock(Clock):
    """A time that only the test moves on."""

    def __init__(self) -> None:
        self._now_secs = 100.0
        self._waiting: dict[int, threading.Condition] = {}
        self.waits: queue_module.Queue[float | None] = queue_module.Queue()

    def now_secs(self) -> float:
        return self._now_secs

    def wait(self, changed: threading.Condition, timeout_secs: float | None) -> None:
        self._waiting[id(changed)] = changed
        self.waits.put(timeout_secs)
        changed.wait()

    def advance(self, secs: float) -> None:
        self._now_secs += secs
        for changed in list(self._waiting.values()):
            with changed:
                changed.notify_all()


class Model:
    """Doubles its input, in runs that the test lets go; refuses negative values."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self._entered = threading.Semaphore(0)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self.batches.append([float(row) for row in x.reshape(len(x), -1)[:, 0]] if x.size else [])
        self._entered.release()
        assert self.may_run.wait(PATIENCE_SECS)
        if (x < 0).any():
            raise invalid(f"negative: {x.min():g}")
        return {"y": x * 2}

    def wait_for_run(self) -> None:
        assert self._entered.acquire(timeout=PATIENCE_SECS)


def x(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)}


def y(answer: concurrent.futures.Future[dict[str, Array]]) -> list[float]:
    return [float(value) for value in answer.result(PATIENCE_SECS)["y"]]


@contextlib.contextmanager
def queue_of(
    model: Callable[..., Any],
    clock: Clock | None = None,
    *,
    max_waiting_bytes: int = MAX_WAITING_BYTES,
    **parameters: Any,
) -> Iterator[BatchQueue]:
    chosen = BatchingParameters(**{"num_batch_threads": 1, "max_batch_size": 4, **parameters})
    scheduler = BatchScheduler(chosen, clock=clock or Clock(), max_waiting_bytes=max_waiting_bytes)
    queue = scheduler.add_queue(model, "test")
    try:
        yield queue
    finally:
        queue.close()


@contextlib.contextmanager
def held(model: Model, queue: BatchQueue) -> Iterator[None]:
    """Keep the one thread of a queue busy in the block."""
    num_before = len(model.batches)
    model.may_run.clear()
    busy = queue.submit(x(0))
    model.wait_for_run()
    try:
        yield
    finally:
        model.may_run.set()
    assert y(busy) == [0]
    model.batches.pop(num_before)


def test_a_free_thread_takes_what_is_there_at_once_if_the_time_out_is_zero() -> None:
    model = Model()
    with queue_of(model, OwnClock(), max_batch_size=1000) as queue:
        assert y(queue.submit(x(1, 2))) == [2, 4]


def test_requests_that_came_while_the_threads_were_busy_are_joined() -> None:
    model = Model()
    with queue_of(model) as queue:
        with held(model, queue):
            answers = [queue.submit(x(*values)) for values in ([1], [2, 3], [4], [5], [6, 7, 8, 9])]
        assert [y(answer) for answer in answers] == [[2], [4, 6], [8], [10], [12, 14, 16, 18]]
    # A request is never cut, so the second batch is closed with the one row that the third would not fit beside.
    assert model.batches == [[1, 2, 3, 4], [5], [6, 7, 8, 9]]


def test_a_batch_waits_for_others_until_the_time_out_of_its_oldest_request() -> None:
    model, clock = Model(), OwnClock()

    def next_wait() -> float | None:
        return clock.waits.get(timeout=PATIENCE_SECS)

    with queue_of(model, clock, batch_timeout_micros=1000) as queue:
        assert next_wait() is None
        first = queue.submit(x(1))
        assert next_wait() == pytest.approx(0.001)
        clock.advance(0.0009)
        assert next_wait() == pytest.approx(0.0001)
        second = queue.submit(x(2))
        assert next_wait() == pytest.approx(0.0001)
        assert not first.running()
        clock.advance(0.00011)
        assert (y(first), y(second)) == ([2], [4])
        assert next_wait() is None
    assert model.batches == [[1, 2]]


def test_a_full_batch_does_not_wait() -> None:
    model = Model()
    with queue_of(model, OwnClock(), batch_timeout_micros=1000) as queue:
        answers = [queue.submit(x(1, 2)), queue.submit(x(3, 4))]
        assert [y(answer) for answer in answers] == [[2, 4], [6, 8]]
    assert model.batches == [[1, 2, 3, 4]]


def test_every_batch_of_several_threads_and_queues_finds_a_thread_in_time() -> None:
    model, other, clock = Model(), Model(), OwnClock()
    scheduler = BatchScheduler(
        BatchingParameters(max_batch_size=4, batch_timeout_micros=1000, num_batch_threads=3), clock=clock
    )
    queues = [scheduler.add_queue(model, "a"), scheduler.add_queue(other, "b")]
    for number in range(20):
        answers = [queue.submit(x(number)) for queue in queues]
        clock.advance(0.002)
        assert [y(answer) for answer in answers] == [[2 * number]] * 2
    for queue in queues:
        queue.close()


def test_batches_are_padded_to_an_allowed_size_and_nobody_sees_it() -> None:
    model = Model()
    with queue_of(model, max_batch_size=8, allowed_batch_sizes=(2, 8)) as queue:
        assert y(queue.submit(x(1))) == [2]
        assert y(queue.submit(x(1, 2, 3))) == [2, 4, 6]
    assert model.batches == [[1, 1], [1, 2, 3, 3, 3, 3, 3, 3]]


def test_what_cannot_be_joined_is_in_batches_of_its_own() -> None:
    model = Model()
    with queue_of(model) as queue:
        with held(model, queue):
            wide = [queue.submit({"x": np.full((1, 3), value, np.float32)}) for value in (1, 2)]
            doubles = [queue.submit({"x": np.array([value], np.float64)}) for value in (3, 4)]
        assert [answer.result(PATIENCE_SECS)["y"].tolist() for answer in wide] == [[[2] * 3], [[4] * 3]]
        assert [answer.result(PATIENCE_SECS)["y"].dtype for answer in doubles] == [np.float64] * 2
    assert model.batches == [[1, 2], [3, 4]]


def test_requests_of_different_lengths_are_padded_where_it_is_asked_for() -> None:
    model = Model()
    with queue_of(model, pad_variable_length_inputs=True) as queue:
        with held(model, queue):
            short = queue.submit({"x": np.array([[1, 2]], np.float32)})
            long = queue.submit({"x": np.array([[3, 4, 5]], np.float32)})
        assert short.result(PATIENCE_SECS)["y"].tolist() == [[2, 4, 2]]
        assert long.result(PATIENCE_SECS)["y"].tolist() == [[6, 8, 10]]
    assert model.batches == [[1, 3]]


def test_under_load_of_one_shape_another_one_has_its_turn() -> None:
    model = Model()
    with queue_of(model, max_enqueued_batches=100) as queue:
        with held(model, queue):
            rare = queue.submit({"x": np.full((1, 2), 7, np.float32)})
            answers = [queue.submit(x(1, 2, 3, 4)) for _ in range(5)]
        assert rare.result(PATIENCE_SECS)["y"].tolist() == [[14, 14]]
        assert [y(answer) for answer in answers] == [[2, 4, 6, 8]] * 5
    assert model.batches[0] == [7]


def test_a_bad_request_does_not_fail_its_neighbours() -> None:
    model = Model()
    with queue_of(model) as queue:
        with held(model, queue):
            answers = [queue.submit(x(value)) for value in (1, -2, 3, -4)]
        assert y(answers[0]) == [2]
        assert y(answers[2]) == [6]
        for answer, told in ((answers[1], "negative: -2"), (answers[3], "negative: -4")):
            with pytest.raises(RequestError, match=told) as caught:
                answer.result(PATIENCE_SECS)
            assert caught.value.code is Code.INVALID_ARGUMENT


def test_outputs_that_cannot_be_split_are_refused() -> None:
    with queue_of(lambda inputs: {"sum": inputs["x"].sum()}) as queue, pytest.raises(RequestError, match="0 dimension"):
        queue.submit(x(1, 2)).result(PATIENCE_SECS)
    with queue_of(lambda inputs: {"y": inputs["x"][:1]}) as queue, pytest.raises(RequestError, match="does not equal"):
        queue.submit(x(1, 2)).result(PATIENCE_SECS)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "must have at least one input tensor"),
        ({"x": np.float32(1)}, "must have at least one dimension"),
        ({"x": np.zeros(2), "z": np.zeros(3)}, "must have equal 0th-dimension size"),
        ({"x": np.zeros(5)}, "Task size 5 is larger than maximum input batch size 4"),
    ],
)
def test_what_cannot_be_in_a_batch_is_refused_when_it_is_added(inputs: Any, told: str) -> None:
    with queue_of(Model()) as queue, pytest.raises(RequestError, match=told) as caught:
        queue.submit(inputs)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_full_queue_refuses_at_once_and_answers_what_it_took() -> None:
    model = Model()
    with queue_of(model, max_enqueued_batches=2) as queue:
        with held(model, queue):
            answers = [queue.submit(x(1, 2, 3)), queue.submit(x(4, 5)), queue.submit(x(6))]
            with pytest.raises(
                RequestError, match="currently 2 batches enqueued and max_enqueued_batches is 2"
            ) as caught:
                queue.submit(x(7, 8))
            answers.append(queue.submit(x(9)))  # which fits into the open batch
        assert caught.value.http_status == 503
        assert [y(answer) for answer in answers] == [[2, 4, 6], [8, 10], [12], [18]]
        assert y(queue.submit(x(10))) == [20]


def test_the_memory_of_waiting_requests_is_bounded() -> None:
    model = Model()
    with queue_of(model, max_enqueued_batches=1000, max_waiting_bytes=100) as queue:
        with held(model, queue):
            large = queue.submit({"x": np.ones((1, 100), np.float32)})
            with pytest.raises(RequestError, match="is full; the requests that wait take 400 bytes") as caught:
                queue.submit(x(1))
            assert caught.value.http_status == 503
        assert large.result(PATIENCE_SECS)["y"].shape == (1, 100)
        assert y(queue.submit(x(1))) == [2]


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ([x(1), x(2)], "is full; currently 2 requests run or wait"),
        ([x(*range(100))], "is full; the requests that wait take 400 bytes, and at most 100 may"),
    ],
)
def test_requests_that_run_one_by_one_are_bounded_by_number_and_memory(
    first: list[dict[str, Array]], told: str
) -> None:
    model = Model()
    model.may_run.clear()
    queue = UnbatchedQueue(model, name="test", num_threads=1, max_waiting=1, max_waiting_bytes=100)
    answers = [queue.submit(inputs) for inputs in first]
    with pytest.raises(RequestError, match=told) as caught:
        queue.submit(x(3))
    assert caught.value.http_status == 503
    model.may_run.set()
    queue.close()
    assert [len(y(answer)) for answer in answers] == [len(inputs["x"]) for inputs in first]


def test_requests_that_were_answered_or_cancelled_make_room_for_others() -> None:
    model = Model()
    queue = UnbatchedQueue(model, name="test", num_threads=1, max_waiting=1, max_waiting_bytes=100)
    for number in range(20):
        assert len(y(queue.submit(x(number)))) == 1
    model.may_run.clear()
    running = queue.submit(x(1))
    for number in range(20):
        assert queue.submit(x(number)).cancel()
    model.may_run.set()
    queue.close()
    assert len(y(running)) == 1


def test_requests_without_rows_take_places_too() -> None:
    model = Model()
    with queue_of(model, max_enqueued_batches=1) as queue:
        with held(model, queue):
            answers = [queue.submit(x()) for _ in range(4)]
            with pytest.raises(RequestError, match="is full"):
                queue.submit(x())
        assert [y(answer) for answer in answers] == [[]] * 4


def test_a_request_whose_deadline_passed_is_not_run() -> None:
    model, clock = Model(), OwnClock()
    with queue_of(model, clock) as queue:
        with held(model, queue):
            late = queue.submit(x(1), deadline_secs=clock.now_secs() + 1)
            in_time = queue.submit(x(2), deadline_secs=clock.now_secs() + 3)
            clock.advance(2)
        assert y(in_time) == [4]
        with pytest.raises(RequestError) as caught:
            late.result(PATIENCE_SECS)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert model.batches == [[2]]


def test_a_cancelled_request_is_not_run() -> None:
    model = Model()
    with queue_of(model) as queue:
        with held(model, queue):
            answers = [queue.submit(x(value)) for value in (1, 2, 3)]
            assert answers[1].cancel()
        assert (y(answers[0]), y(answers[2])) == ([2], [6])
    assert model.batches == [[1, 3]]


def test_a_batch_of_which_nothing_is_left_is_not_run() -> None:
    model = Model()
    with queue_of(model) as queue:
        with held(model, queue):
            assert queue.submit(x(1)).cancel()
        assert y(queue.submit(x(2))) == [4]
    assert model.batches == [[2]]


def test_a_large_request_is_split_over_batches_where_it_is_asked_for() -> None:
    model = Model()
    parameters = {"max_batch_size": 9, "enable_large_batch_splitting": True, "max_execution_batch_size": 4}
    with queue_of(model, **parameters, max_enqueued_batches=3) as queue:
        with held(model, queue):
            answers = [queue.submit(x(1)), queue.submit(x(*range(2, 11)))]
            with pytest.raises(RequestError, match="full; task size is 3 but scheduling capacity is only 2"):
                queue.submit(x(1, 2, 3))
            answers.append(queue.submit(x(11, 12)))
        assert [y(answer) for answer in answers] == [[2], [*range(4, 21, 2)], [22, 24]]
        with held(model, queue):
            bad = queue.submit(x(1, 2, 3, 4, 5, 6, 7, 8, -9))
        with pytest.raises(RequestError, match="negative: -9"):
            bad.result(PATIENCE_SECS)
    assert model.batches[:3] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def test_closing_answers_what_was_accepted_and_ends_the_threads() -> None:
    model = Model()
    scheduler = BatchScheduler(
        BatchingParameters(max_batch_size=4, num_batch_threads=3, batch_timeout_micros=LONG_MICROS), clock=OwnClock()
    )
    before = set(threading.enumerate())
    first, second = scheduler.add_queue(model, "a"), scheduler.add_queue(model, "b")
    assert len(set(threading.enumerate()) - before) == 3
    answers = [first.submit(x(1)), second.submit(x(2)), first.submit({"x": np.ones((1, 2), np.float32)})]
    first.close()
    assert (y(answers[0]), answers[2].done(), answers[1].done()) == ([2], True, False)
    with pytest.raises(RequestError, match="queue is closed") as caught:
        first.submit(x(3))
    assert caught.value.http_status == 503
    first.close()
    second.close()
    assert y(answers[1]) == [4]
    assert set(threading.enumerate()) == before
    third = scheduler.add_queue(model, "c")
    answer = third.submit(x(1, 2, 3, 4))
    assert y(answer) == [2, 4, 6, 8]
    third.close()
    assert set(threading.enumerate()) == before


def test_closing_does_not_wait_for_the_time_out() -> None:
    clock = OwnClock()
    with queue_of(Model(), clock, batch_timeout_micros=LONG_MICROS) as queue:
        assert clock.waits.get(timeout=PATIENCE_SECS) is None
        answer = queue.submit(x(1))
        assert clock.waits.get(timeout=PATIENCE_SECS) == pytest.approx(60)
    assert y(answer) == [2]


def test_idle_threads_share_the_batches_of_one_large_request() -> None:
    model, clock = Model(), OwnClock()
    parameters = {"max_batch_size": 8, "enable_large_batch_splitting": True, "max_execution_batch_size": 4}
    with queue_of(model, clock, **parameters, num_batch_threads=2) as queue:
        assert [clock.waits.get(timeout=PATIENCE_SECS) for _ in range(2)] == [None, None]
        model.may_run.clear()
        answer = queue.submit(x(*range(8)))
        model.wait_for_run()
        model.wait_for_run()
        model.may_run.set()
        assert y(answer) == [*range(0, 16, 2)]


def test_the_queues_of_a_scheduler_take_turns() -> None:
    order: list[str] = []
    blocked = Model()
    blocked.may_run.clear()

    def run(name: str) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        return lambda inputs: (order.append(name), {"y": inputs["x"]})[1]

    scheduler = BatchScheduler(BatchingParameters(max_batch_size=1, max_enqueued_batches=9, num_batch_threads=1))
    queues = [scheduler.add_queue(run, name) for run, name in ((blocked, "z"), (run("a"), "a"), (run("b"), "b"))]
    queues[0].submit(x(0))
    blocked.wait_for_run()
    answers = [queue.submit(x(number)) for queue in queues[1:] for number in range(3)]
    blocked.may_run.set()
    for answer in answers:
        answer.result(PATIENCE_SECS)
    assert order == ["a", "b"] * 3
    for queue in queues:
        queue.close()


def test_an_error_that_is_none_of_the_protocol_reaches_its_request_and_the_thread_goes_on() -> None:
    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["x"][0] == 1:
            raise MemoryError("too much")
        return {"y": inputs["x"]}

    with queue_of(run) as queue:
        with pytest.raises(MemoryError, match="too much"):
            queue.submit(x(1)).result(PATIENCE_SECS)
        assert y(queue.submit(x(2))) == [2]


def test_no_thread_keeps_the_tensors_of_a_request_that_is_answered() -> None:
    class Traced(np.ndarray):
        pass

    model = Model()
    with queue_of(model, num_batch_threads=2) as queue:
        array = np.ones(4, np.float32).view(Traced)
        kept = weakref.ref(array)
        assert y(queue.submit({"x": array})) == [2, 2, 2, 2]
        del array
        deadline = time.monotonic() + PATIENCE_SECS
        while kept() is not None and time.monotonic() < deadline:
            gc.collect()
        assert kept() is None


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    num_threads=st.integers(1, 4),
    split=st.booleans(),
    timeout_micros=st.sampled_from([0, 200]),
    bad=st.sets(st.integers(0, 39), max_size=3),
)
def test_every_request_gets_exactly_its_own_rows(
    sizes: list[int], num_threads: int, split: bool, timeout_micros: int, bad: set[int]
) -> None:
    numbers = itertools.count(1)
    requests = [[next(numbers) * (-1 if index in bad else 1) for _ in range(size)] for index, size in enumerate(sizes)]
    with queue_of(
        Model(),
        max_batch_size=6,
        max_execution_batch_size=4,
        enable_large_batch_splitting=split,
        allowed_batch_sizes=(1, 3, 6),
        num_batch_threads=num_threads,
        batch_timeout_micros=timeout_micros,
        max_enqueued_batches=100,
    ) as queue:
        answers = [queue.submit(x(*request)) for request in requests]
        for request, answer in zip(requests, answers, strict=True):
            if any(value < 0 for value in request):
                with pytest.raises(RequestError, match="negative"):
                    answer.result(PATIENCE_SECS)
            else:
                assert y(answer) == [2 * value for value in request]


def test_waits_sizes_and_padding_are_measured_under_the_names_of_tensorflow_serving() -> None:
    metrics, clock, model = Metrics(), OwnClock(), Model()
    parameters = BatchingParameters(
        max_batch_size=4, allowed_batch_sizes=(2, 4), num_batch_threads=1, batch_timeout_micros=5000
    )
    queue = BatchScheduler(parameters, clock=clock, observer=metrics.batching).add_queue(model, "test")
    answers = [queue.submit(x(1))]
    clock.advance(0.004)
    answers.append(queue.submit(x(2, 3)))
    clock.advance(0.002)
    assert [y(answer) for answer in answers] == [[2], [4, 6]]
    queue.close()
    page = metrics.page().decode()
    prefix = ":tensorflow:serving:batching_session:"
    for line in (
        'queuing_latency_count{thread_pool_name="batch_threads"} 2',
        'queuing_latency_bucket{thread_pool_name="batch_threads",le="100"} 0',
        "input_batch_size_sum{} 3",
        "processed_batch_size_sum{} 4",
        'padding_size_sum{execution_batch_size="4"} 1',
        "wrapped_run_count{} 1",
    ):
        assert prefix + line + "\n" in page
    (waited,) = re.findall(prefix + r"queuing_latency_sum{thread_pool_name=\"batch_threads\"} (.+)\n", page)
    assert float(waited) == pytest.approx(8000)
