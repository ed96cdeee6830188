"""The signals that ask a run to save and stop, and what they do before there is a run, while it runs, and twice."""

import contextlib
import os
import signal
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from trainer.errors import StoppedOnRequest

if TYPE_CHECKING:
    import asyncio

# Ctrl-C; the end of a pod or a service; a terminal that is closed; what Slurm and LSF send before the time is up.
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """A flag that the first stop signal sets; the second one, whichever it is, ends the process at once."""

    def __init__(self) -> None:
        self.is_set = False

    @contextlib.contextmanager
    def listen(self) -> Iterator["StopRequest"]:
        """Handle the stop signals during the block."""
        with handling(self._on_signal):
            yield self

    def _on_signal(self, number: int) -> None:
        self.is_set = True
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise StoppedOnRequest in the block at the first stop signal: nothing there would have to be saved."""

    def stop(number: int) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise StoppedOnRequest(
            f"stopped by {signal.Signals(number).name} while no step was made; the same command goes on"
        )

    with handling(stop):
        yield


@contextlib.contextmanager
def calling(loop: "asyncio.AbstractEventLoop", on_signal: Callable[[], None]) -> Iterator[None]:
    """Call `on_signal` in `loop` at each stop signal during the block."""
    terminals = _terminals()

    def call(number: int) -> None:
        if number == signal.SIGHUP:
            _let_go_of(terminals)
        on_signal()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, call, number)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def handling(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Call `on_signal` with the number of each stop signal during the block, and restore the handlers after it."""
    terminals = _terminals()

    def handle(number: int, _: types.FrameType | None) -> None:
        if number == signal.SIGHUP:
            _let_go_of(terminals)
        on_signal(number)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminals() -> list[int]:
    return [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]


def _let_go_of(terminals: list[int]) -> None:
    """Send the output to nowhere: a terminal that is closed answers every line with an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
