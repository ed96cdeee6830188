"""Collect metrics for Prometheus under TensorFlow Serving's path, names and labels, so that dashboards work for both.

Names and buckets: servables/tensorflow/util.cc; format: util/prometheus_exporter.cc. Only the gauge of requests in
progress is our own.
"""

from collections.abc import Iterator

import prometheus_client
from prometheus_client.metrics_core import Metric

from serving.monitoring.batching_metrics import BatchingMetrics
from serving.protocol.status import Code

PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain"
_PREFIX = ":tensorflow:serving:"
# In microseconds: 10 times powers of 1.8, 33 of them, to about twenty minutes.
_LATENCY_BUCKETS = tuple(float(f"{10 * 1.8**power:g}") for power in range(33))


class Metrics:
    """The metrics of one server, in its own registry, so that two servers in a process do not mix.

    The label `model_name` is "" for models that are not served, so that scanning the server cannot fill its memory with
    time series.

    Attributes:
        batching: those of batches, an observer of queues.
    """

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            f"{_PREFIX}request_count", "Requests by status.", ("model_name", "status"), registry=self._registry
        )
        self._request_latency = self._latency(
            "request_latency", "Microseconds from the head of a request to its answer.", "entrypoint"
        )
        self._runtime_latency = self._latency("runtime_latency", "Microseconds that TensorFlow took.", "runtime")
        self.batching = BatchingMetrics(self._registry)
        self._in_progress = prometheus_client.Gauge(
            "serving_requests_in_progress", "Requests taken in and not answered yet.", registry=self._registry
        )

    def _latency(self, name: str, documentation: str, label: str) -> prometheus_client.Histogram:
        labels = ("model_name", "API", label)
        return prometheus_client.Histogram(
            _PREFIX + name, documentation, labels, buckets=_LATENCY_BUCKETS, registry=self._registry
        )

    def begin(self) -> None:
        """Count an incoming request; `end` must follow."""
        self._in_progress.inc()

    def end(self, *, model: str, method: str, status: Code, latency_secs: float, entrypoint: str = "REST") -> None:
        """Count an answered request; `method` is predict, classify or regress, "" for others.

        TensorFlow Serving writes the method with a capital for the `entrypoint` GRPC.
        """
        self._in_progress.dec()
        self._requests.labels(model, status.name).inc()
        if status is Code.OK:
            self._request_latency.labels(model, method, entrypoint).observe(latency_secs * 1e6)

    def ran(self, *, model: str, method: str, latency_secs: float) -> None:
        """Record a run of the model."""
        self._runtime_latency.labels(model, method.capitalize(), "TF1").observe(latency_secs * 1e6)

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return "".join(line for metric in self._registry.collect() for line in _lines(metric)).encode()


def _lines(metric: Metric) -> Iterator[str]:
    # Not formatted by the client library, which appends _total to counters, unlike TensorFlow Serving.
    yield f"# TYPE {metric.name} {metric.type}\n"
    for sample in metric.samples:
        if sample.name.endswith("_created"):
            continue
        labels = ",".join(f'{name}="{_escape(name, value)}"' for name, value in sample.labels.items())
        yield f"{sample.name.removesuffix('_total')}{{{labels}}} {_number(sample.value)}\n"


def _escape(name: str, value: str) -> str:
    if name == "le":  # six digits, like TensorFlow Serving's bucket limits
        return value if value == "+Inf" else f"{float(value):g}"
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
