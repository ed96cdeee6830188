"""The heartbeat of a worker: a counter in memory shared with its guard, which sees from it that steps are made."""

import faulthandler
import mmap
import os
import signal
import struct
import sys
import time

# The environment variable with the file descriptor of the counter.
VARIABLE = "TRAINER_HEARTBEAT_FD"
# On this signal a worker prints the stacks of all of its threads.
# One that no batch system sends.
STACK_SIGNAL = signal.SIGRTMIN + 5
_COUNTER = struct.Struct("=Q")
# A worker that loads, fills a cache and compiles has no heartbeat yet: the time it may take for that on top.
_START_SECS = 3600.0


class Heartbeat:
    """A shared counter that the worker increments; it has no name in any file system, so nothing is left behind."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, _COUNTER.size)

    @classmethod
    def create(cls) -> "Heartbeat":
        """Create a counter of 0 in anonymous memory."""
        fd = os.memfd_create("trainer-heartbeat")
        os.ftruncate(fd, _COUNTER.size)
        return cls(fd)

    @property
    def counter(self) -> int:
        (value,) = _COUNTER.unpack_from(self._memory)
        return int(value)

    def beat(self) -> None:
        """Increment the counter."""
        self.move_to(self.counter + 1)

    def move_to(self, counter: int) -> None:
        """Set the counter, so that workers that were started at different times can be compared by it."""
        _COUNTER.pack_into(self._memory, 0, counter)


class Stall:
    """A detector that reports once for each stall that a counter has not changed for `timeout_secs`; None: never.

    A counter of 0 has not started, and has an hour more.
    """

    def __init__(self, *, timeout_secs: float | None) -> None:
        self._timeout_secs = timeout_secs
        self._counter = 0
        self._since = time.monotonic()
        self._is_told = False

    def seen(self, counter: int) -> float | None:
        """Return the length of a stall in seconds when it has to be reported; None otherwise."""
        now = time.monotonic()
        if counter != self._counter:
            self._counter, self._since, self._is_told = counter, now, False
        stood_secs = now - self._since
        if self._timeout_secs is None or self._is_told:
            return None
        if stood_secs < self._timeout_secs + (0.0 if counter else _START_SECS):
            return None
        self._is_told = True
        return stood_secs


def of_this_worker() -> Heartbeat | None:
    """Return the heartbeat of this worker, and print its stacks on `STACK_SIGNAL`; None without a guard."""
    fd = os.environ.get(VARIABLE)
    if fd is None:
        return None
    faulthandler.register(STACK_SIGNAL, file=sys.__stderr__ or sys.stderr, all_threads=True)
    return Heartbeat(int(fd))
