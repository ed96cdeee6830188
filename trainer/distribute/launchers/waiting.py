"""Waiting is told: whom a process waits for, on what grounds, and how long."""

import contextlib
import threading
from collections.abc import Callable, Iterator

# What takes less needs no word.
TELL_AFTER_SECS = 5.0


@contextlib.contextmanager
def told(note: Callable[[str], None], sentence: Callable[[], str]) -> Iterator[None]:
    """Says `sentence` once, where the body takes longer than some seconds; also where it is in C++ code meanwhile."""
    timer = threading.Timer(TELL_AFTER_SECS, lambda: note(sentence()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
