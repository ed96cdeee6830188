"""A thread that does something again and again until it is stopped."""

import logging
import threading
from collections.abc import Callable


class Periodic:
    """Calls `action`, waits `interval_secs`, and so on, in a thread; the first call comes after the first wait."""

    def __init__(self, action: Callable[[], None], *, interval_secs: float, name: str) -> None:
        self._action = action
        self._interval_secs = interval_secs
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait for the end of a call in progress; no other follows."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_secs):
            try:
                self._action()
            except Exception:
                # Nobody waits for this thread; the next call may succeed.
                logging.getLogger(__name__).exception("%s failed; it is tried again", self._thread.name)
