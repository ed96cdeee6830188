"""The time that queues wait by, apart from them so that a test can own it."""

import threading
import time


class Clock:
    """The time of `time.monotonic`."""

    def now_secs(self) -> float:
        return time.monotonic()

    def wait(self, changed: threading.Condition, timeout_secs: float | None) -> None:
        """Wait for a notification of `changed`, at most `timeout_secs`."""
        changed.wait(timeout_secs)
