"""Metrics of batches, under the names and with the buckets of TensorFlow Serving's batching session.

Names and buckets: batching/batching_session.cc and batching/batching_util.h.
"""

from collections.abc import Sequence

import prometheus_client

_PREFIX = ":tensorflow:serving:batching_session:"
_SIZES = tuple(float(2**power) for power in range(14))
# In microseconds: 100 times powers of 1.2, 52 of them, to about a second.
_WAITS = tuple(float(f"{100 * 1.2**power:g}") for power in range(52))


class BatchingMetrics:
    """A `BatchObserver` that counts in a registry."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        def histogram(
            name: str, documentation: str, *labels: str, buckets: Sequence[float]
        ) -> prometheus_client.Histogram:
            return prometheus_client.Histogram(
                _PREFIX + name, documentation, labels, buckets=buckets, registry=registry
            )

        self._waits = histogram(
            "queuing_latency", "Microseconds from a request to its run.", "thread_pool_name", buckets=_WAITS
        )
        self._input_sizes = histogram("input_batch_size", "Examples in a request.", buckets=_SIZES)
        self._sizes = histogram("processed_batch_size", "Examples in a run, with padding.", buckets=_SIZES)
        self._padding = histogram("padding_size", "Padding in a run.", "execution_batch_size", buckets=_SIZES)
        self._runs = prometheus_client.Counter(_PREFIX + "wrapped_run_count", "Runs of a model.", registry=registry)

    def request_added(self, size: int) -> None:
        self._input_sizes.observe(size)

    def batch_taken(self, pool: str, waits_secs: Sequence[float]) -> None:
        waits = self._waits.labels(pool)
        for wait_secs in waits_secs:
            waits.observe(wait_secs * 1e6)

    def model_run(self, size: int, padding: int) -> None:
        self._runs.inc()
        self._sizes.observe(size)
        self._padding.labels(str(size)).observe(padding)
