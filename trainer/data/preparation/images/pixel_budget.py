"""Limit how many pixels are decoded at the same time, whatever the number of threads."""

import contextlib
import threading
from collections.abc import Iterator


class PixelBudget:
    """A budget of decoded pixels in memory, shared by threads, which wait until theirs fit."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._num_held = 0
        self._changed = threading.Condition()
        # Held by the thread that waits: otherwise many small images could starve a large one.
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def hold(self, num_pixels: int) -> Iterator[None]:
        """Wait for room; an image larger than the whole budget is admitted alone."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._num_held == 0 or self._num_held + num_pixels <= self._max_pixels)
            self._num_held += num_pixels
        try:
            yield
        finally:
            with self._changed:
                self._num_held -= num_pixels
                self._changed.notify_all()
