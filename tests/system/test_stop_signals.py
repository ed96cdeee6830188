"""The signals that ask for a stop: what the first and the second one do, and a terminal that is closed."""

import asyncio
import os
import pty
import signal

import pytest

from trainer.errors import StoppedOnRequest
from trainer.system import stop_signals
from trainer.system.stop_signals import STOP_SIGNALS, StopRequest, calling, stopping_at_once


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_sets_the_flag_and_the_second_would_end_the_process(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with StopRequest().listen() as request:
        assert not request.is_set
        os.kill(os.getpid(), number)
        assert request.is_set
        assert {signal.getsignal(each) for each in STOP_SIGNALS} == {signal.SIG_DFL}
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_outside_of_training_a_signal_ends_the_command_with_75() -> None:
    with pytest.raises(StoppedOnRequest, match=r"SIGUSR1.*the same command goes on") as error, stopping_at_once():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert error.value.exit_status == 75


def test_a_launcher_hears_of_every_signal() -> None:
    async def count() -> int:
        heard: list[bool] = []
        with calling(asyncio.get_running_loop(), lambda: heard.append(True)):
            for number in STOP_SIGNALS:
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.01)
        return len(heard)

    assert asyncio.run(count()) == len(STOP_SIGNALS)


def test_output_to_a_terminal_that_was_closed_is_dropped_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setattr(stop_signals, "_terminals", lambda: [theirs])
    try:
        with StopRequest().listen():
            os.close(ours)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(theirs, b"a line")
            os.kill(os.getpid(), signal.SIGHUP)
            assert os.write(theirs, b"a line") == 6
    finally:
        os.close(theirs)
