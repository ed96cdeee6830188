"""A bound on how much is decoded at the same time, whatever the number of threads."""

import contextlib
import threading
from collections.abc import Iterator


class PixelBudget:
    """Decoded pixels in flight: threads wait until theirs fit. Safe to share between threads."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._num_held = 0
        self._changed = threading.Condition()
        # Held by the one whose turn it is: many small ones would keep a large one waiting for ever.
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def hold(self, num_pixels: int) -> Iterator[None]:
        """Waits for room; what is larger than all of the budget is let in alone."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._num_held == 0 or self._num_held + num_pixels <= self._max_pixels)
            self._num_held += num_pixels
        try:
            yield
        finally:
            with self._changed:
                self._num_held -= num_pixels
                self._changed.notify_all()
