"""How long the other end of a line may be silent before it counts as gone."""

import time

# The owner of a lease must look this often, in seconds; more than twice as much is not held against the other end.
LOOK_EVERY_SECS = 0.5


class Lease:
    """Runs out after `secs` without a word from the other end; None never does.

    Time in which this process itself did not run (it was stopped, or the machine slept) does not count: the words of
    the other end are still unread then.
    """

    def __init__(self, secs: float | None) -> None:
        self.secs = secs
        self._silent_secs = 0.0
        self._looked_at = time.monotonic()

    def renew(self) -> None:
        """The other end has spoken."""
        self._silent_secs = 0.0

    def has_ended(self) -> bool:
        now = time.monotonic()
        self._silent_secs += min(now - self._looked_at, 2 * LOOK_EVERY_SECS)
        self._looked_at = now
        return self.secs is not None and self._silent_secs >= self.secs
