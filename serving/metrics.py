"""What the server counts, for Prometheus, at the path that TensorFlow Serving uses."""

import prometheus_client

PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
# From a cached answer to a large batch on a slow CPU, in seconds.
_LATENCY_BUCKETS_SECS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one server, in a registry of its own: two servers in a process do not mix.

    The label `model` holds names of models that are served; any other name that a client made up is "", so that
    a scan of the server cannot fill the memory with time series.
    """

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        labels = ("model", "method", "status")
        self._requests = prometheus_client.Counter(
            "serving_requests", "Requests answered, by HTTP status.", labels, registry=self._registry
        )
        self._latency = prometheus_client.Histogram(
            "serving_request_latency_seconds",
            "Time from the first byte of a request's head to its answer.",
            labels,
            buckets=_LATENCY_BUCKETS_SECS,
            registry=self._registry,
        )
        self._in_progress = prometheus_client.Gauge(
            "serving_requests_in_progress", "Requests taken in and not answered yet.", registry=self._registry
        )

    def begin(self) -> None:
        """A request came in; `end` must follow."""
        self._in_progress.inc()

    def end(self, *, model: str, method: str, status: int, latency_secs: float) -> None:
        """The request was answered."""
        self._in_progress.dec()
        self._requests.labels(model, method, str(status)).inc()
        self._latency.labels(model, method, str(status)).observe(latency_secs)

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)
