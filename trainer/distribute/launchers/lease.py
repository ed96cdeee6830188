"""A lease on the other end of a connection: after a time of silence it counts as lost."""

import time

# The owner of a lease must call `has_ended` this often, in seconds; a longer pause counts as twice as much.
LOOK_EVERY_SECS = 0.5


class Lease:
    """A lease that ends after `secs` without a message from the other end; None: never.

    Time in which this process itself did not run (it was stopped, or the machine slept) does not count: the messages
    of the other end are still unread then.
    """

    def __init__(self, secs: float | None) -> None:
        self.secs = secs
        self._silent_secs = 0.0
        self._looked_at = time.monotonic()

    def renew(self) -> None:
        """Start the time anew, since a message has come."""
        self._silent_secs = 0.0

    def has_ended(self) -> bool:
        """Return True if the other end has been silent for too long."""
        """Return True if the other end has been silent for too long."""
        now = time.monotonic()
        self._silent_secs += min(now - self._looked_at, 2 * LOOK_EVERY_SECS)
        self._looked_at = now
        return self.secs is not None and self._silent_secs >= self.secs
