"""What the server counts, for Prometheus: the path, names and labels are TensorFlow Serving's, so that a dashboard that
works here works there.

Names and buckets: servables/tensorflow/util.cc; the format: util/prometheus_exporter.cc. Only the gauge of requests in
progress is ours alone.
"""

from collections.abc import Iterator

import prometheus_client
from prometheus_client.metrics_core import Metric

from serving.rest.status import Code

PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain"
_PREFIX = ":tensorflow:serving:"
# In microseconds: 10 times powers of 1.8, 33 of them, to about twenty minutes.
_LATENCY_BUCKETS = tuple(float(f"{10 * 1.8**power:g}") for power in range(33))


class Metrics:
    """The metrics of one server, in a registry of its own: two servers in a process do not mix.

    The label `model_name` holds names of models that are served; any other name that a client made up is "", so that
    a scan of the server cannot fill the memory with time series.
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
        self._in_progress = prometheus_client.Gauge(
            "serving_requests_in_progress", "Requests taken in and not answered yet.", registry=self._registry
        )

    def _latency(self, name: str, documentation: str, label: str) -> prometheus_client.Histogram:
        labels = ("model_name", "API", label)
        return prometheus_client.Histogram(
            _PREFIX + name, documentation, labels, buckets=_LATENCY_BUCKETS, registry=self._registry
        )

    def begin(self) -> None:
        """A request came in; `end` must follow."""
        self._in_progress.inc()

    def end(self, *, model: str, method: str, status: Code, latency_secs: float) -> None:
        """The request was answered. method: predict, classify or regress; "" for the others."""
        self._in_progress.dec()
        self._requests.labels(model, status.name).inc()
        if status is Code.OK:
            self._request_latency.labels(model, method, "REST").observe(latency_secs * 1e6)

    def ran(self, *, model: str, method: str, latency_secs: float) -> None:
        """The model was run."""
        self._runtime_latency.labels(model, method.capitalize(), "TF1").observe(latency_secs * 1e6)

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return "".join(line for metric in self._registry.collect() for line in _lines(metric)).encode()


def _lines(metric: Metric) -> Iterator[str]:
    # Not by the client library: it ends the names of counters in _total, where TensorFlow Serving's do not.
    yield f"# TYPE {metric.name} {metric.type}\n"
    for sample in metric.samples:
        if sample.name.endswith("_created"):
            continue
        labels = ",".join(f'{name}="{_escape(name, value)}"' for name, value in sample.labels.items())
        yield f"{sample.name.removesuffix('_total')}{{{labels}}} {_number(sample.value)}\n"


def _escape(name: str, value: str) -> str:
    if name == "le":  # six digits, as that server prints the limits of its buckets
        return value if value == "+Inf" else f"{float(value):g}"
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
