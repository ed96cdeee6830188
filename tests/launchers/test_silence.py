"""What the launcher does while nobody reads it, and how it counts the silence of others."""

import threading

import pytest

from trainer.distribute.launchers.lease import Lease
from trainer.distribute.launchers.line_printer import LinePrinter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("trainer.distribute.launchers.lease.time", clock)
    return clock


def test_a_lease_ends_after_its_time_of_silence_and_a_word_renews_it(clock: Clock) -> None:
    lease = Lease(3.0)
    for _ in range(5):
        clock.now += 0.5
        assert not lease.has_ended()
    lease.renew()
    for _ in range(5):
        clock.now += 0.5
        assert not lease.has_ended()
    clock.now += 0.5
    assert lease.has_ended()


def test_time_in_which_this_process_did_not_run_is_not_held_against_the_other_end(clock: Clock) -> None:
    lease = Lease(3.0)
    clock.now += 3600
    assert not lease.has_ended()


def test_without_a_time_a_lease_never_ends(clock: Clock) -> None:
    lease = Lease(None)
    for _ in range(10_000):
        clock.now += 1.0
        assert not lease.has_ended()


def test_lines_are_shown_in_order_and_nobody_waits_for_a_reader_that_pauses() -> None:
    shown: list[str] = []
    reads_on = threading.Event()

    def show(line: str) -> None:
        reads_on.wait()
        shown.append(line)

    with LinePrinter(show) as printer:
        for i in range(20_000):
            printer(str(i))
        reads_on.set()
        while len(shown) < 10_000:
            pass
        printer("the last")
    assert shown[:10_000] == [str(i) for i in range(10_000)]
    assert "lines were left out" in shown[-2]
    assert shown[-1] == "the last"


def test_a_reader_that_has_gone_ends_nothing() -> None:
    def show(line: str) -> None:
        raise BrokenPipeError

    with LinePrinter(show) as printer:
        printer("one")
        printer("two")
