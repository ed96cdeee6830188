"""Load on a server, on a clock of the test's own: who asks when, and from when an answer is timed."""

import asyncio

import pytest

from serving.load import generate
from serving.load.generate import Load, Measurement, measure


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now_secs = 0.0

    async def sleep(self, secs: float) -> None:
        await _let_others_run()
        self.now_secs += secs


_sleep = asyncio.sleep


async def _let_others_run() -> None:
    for _ in range(3):
        await _sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(generate.time, "monotonic", lambda: clock.now_secs)
    monkeypatch.setattr(generate.asyncio, "sleep", clock.sleep)
    return clock


def test_callers_of_a_closed_loop_ask_again_when_they_have_their_answer(clock: Clock) -> None:
    open_calls, most = set(), []

    async def send(number: int) -> None:
        open_calls.add(number)
        most.append(len(open_calls))
        await _let_others_run()
        clock.now_secs += 0.1 / 4
        open_calls.remove(number)

    found = asyncio.run(measure(send, Load(loop="closed", concurrency=4, secs=10, warm_up_secs=2)))
    assert max(most) == 4
    assert found.requests_per_sec == pytest.approx(40, rel=0.05)
    assert found.latencies_ms["p50"] == pytest.approx(100, rel=0.3)
    assert found.errors == {}


def open_loop(clock: Clock, rate: float, secs: float, stuck_secs: float = 0.0) -> Measurement:
    """The server answers at once, but for the first request after the warm-up, during which it answers nothing."""
    stuck = [stuck_secs]

    async def send(number: int) -> None:
        if clock.now_secs >= 1 and stuck:
            clock.now_secs += stuck.pop()

    return asyncio.run(measure(send, Load(loop="open", rate=rate, secs=secs, warm_up_secs=1)))


def test_requests_of_an_open_loop_arrive_at_their_rate_at_random(clock: Clock) -> None:
    found = open_loop(clock, rate=20, secs=500)
    assert found.num_answers == pytest.approx(10_000, abs=400)  # four standard deviations
    assert found.latencies_ms["p99.9"] == pytest.approx(0)


def test_a_server_that_falls_behind_cannot_hide_it(clock: Clock) -> None:
    found = open_loop(clock, rate=100, secs=20, stuck_secs=10)
    assert found.num_answers == pytest.approx(2000, abs=200)
    # Half of the requests arrived while nothing was answered, and waited 5 s on average.
    assert found.latencies_ms["p50"] > 0
    assert found.latencies_ms["p90"] == pytest.approx(8000, rel=0.1)
    assert found.latencies_ms["p99.9"] == pytest.approx(10_000, rel=0.05)


def test_errors_are_counted_by_kind_and_are_no_answers(clock: Clock) -> None:
    async def send(number: int) -> None:
        await clock.sleep(0.01)
        if number % 4 == 3:
            raise ConnectionError("refused\nby someone")

    found = asyncio.run(measure(send, Load(loop="closed", concurrency=1, secs=4, warm_up_secs=0)))
    assert found.errors == {"ConnectionError: refused": pytest.approx(100, abs=2)}
    assert found.num_answers == pytest.approx(300, abs=2)
