"""Report the requests and batches of a queue, for metrics."""

from collections.abc import Sequence
from typing import Protocol


class BatchObserver(Protocol):
    """Told of every request and batch; what it raises would reach the requests. Thread-safe."""

    def request_added(self, size: int) -> None:
        """Count a request of `size` examples that was added to a queue."""

    def batch_taken(self, pool: str, waits_secs: Sequence[float]) -> None:
        """Record how long the requests of a batch waited for a thread of `pool`."""

    def model_run(self, size: int, padding: int) -> None:
        """Count a run of `size` examples, `padding` of which fill it up to an allowed size."""


class NoObserver:
    """Ignores everything."""

    def request_added(self, size: int) -> None:
        pass

    def batch_taken(self, pool: str, waits_secs: Sequence[float]) -> None:
        pass

    def model_run(self, size: int, padding: int) -> None:
        pass
