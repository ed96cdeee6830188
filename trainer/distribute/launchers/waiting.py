"""Tell the user when a process waits for others for more than a few seconds."""

import contextlib
import threading
from collections.abc import Callable, Iterator

TELL_AFTER_SECS = 5.0


@contextlib.contextmanager
def told(note: Callable[[str], None], sentence: Callable[[], str]) -> Iterator[None]:
    """Call `note` with `sentence` once if the block takes longer than some seconds, even if it is in C++ code."""
    timer = threading.Timer(TELL_AFTER_SECS, lambda: note(sentence()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
