"""Ask a server everything that must hold before an export's version on it gets traffic.

The order matters: the first request to each signature is the first one of this check, so that a version that was not
warmed up shows by how long it takes.
"""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from export.files.signature import CLASS_ID, LABEL, PROBABILITIES
from export.gate.decisions import decide
from export.runtime.client_images import predict_files
from serving.clients.connections import Connection, GrpcConnection, RemoteModel, RestConnection
from serving.clients.rest_client import DEFAULT_TIMEOUT_SECS
from serving.protocol.address import parse_address
from serving.protocol.limits import cluster_batch_size
from serving.protocol.tensors import Array
from serving.verification.expectation import Answers, Expectation
from serving.verification.server_report import ServerCheck, ServerReport

_NUM_TIMED = 40
# A first answer that takes this much longer than the slowest of the later ones was a model that starts to run. On a
# busy server the slowest is slow, too.
_COLD_FACTOR = 3.0
_COLD_MARGIN_MS = 150.0
_DTYPES = {"string": "DT_STRING", "float32": "DT_FLOAT", "int64": "DT_INT64", "bool": "DT_BOOL"}


def verify_server(
    export_dir: pathlib.Path,
    *,
    server: str | None,
    grpc: str | None,
    max_p99_ms: float | None = None,
    timeout_secs: float = DEFAULT_TIMEOUT_SECS,
    on_check: Callable[[ServerCheck], None] = lambda check: None,
) -> ServerReport:
    """Check whether a server has loaded the export `export_dir` and is fit for traffic.

    Args:
        export_dir: as `trainer export` wrote it.
        server: the REST API, http(s)://HOST:PORT, with /v1/models/NAME/versions/N or /labels/L if the model has another
            name there or not its newest version is meant; None asks gRPC alone.
        grpc: the gRPC API, HOST:PORT or grpcs://HOST:PORT; None asks REST alone.
        max_p99_ms: as in `check_server`.
        timeout_secs: for one answer.
        on_check: called with each check as it ends.

    Raises as `check_server` does, and ArtifactError for what is no export. Failed checks are in the result.
    """
    expected = Expectation.load(export_dir)
    address = parse_address(server) if server is not None else None
    model = RemoteModel(
        address.model if address and address.model else expected.signature.model_name,
        address.version if address else None,
        address.label if address else None,
    )
    with contextlib.ExitStack() as stack:
        connections: list[Connection] = []
        if address is not None:
            connections.append(stack.enter_context(RestConnection(address.server, model, timeout_secs=timeout_secs)))
        if grpc is not None:
            connections.append(stack.enter_context(GrpcConnection(grpc, model, timeout_secs=timeout_secs)))
        checks = []
        for check in check_server(connections, expected, max_p99_ms=max_p99_ms):
            on_check(check)
            checks.append(check)
    return ServerReport(
        server=server or grpc or "",
        grpc=grpc,
        model=model.name,
        version=expected.version,
        checks=checks,
    )


def check_server(
    connections: Sequence[Connection], expected: Expectation, *, max_p99_ms: float | None = None
) -> Iterator[ServerCheck]:
    """Yield each check of a server as it ends, over every one of its APIs.

    Args:
        connections: to the model, one for each API.
        expected: what the export answers.
        max_p99_ms: the longest that 99 of 100 requests with one image may take; None measures only.

    Raises:
        ArtifactError: the server does not answer or does not have the model.
        TrainerError: it fails.
        UsageError: it refuses a request that the export's contract allows.
    """
    for connection in connections:
        yield _check_version(connection, expected)
        yield _check_signatures(connection, expected)
        for answers in expected.answers:
            start_secs = time.perf_counter()
            _predict(connection, answers, expected, np.array([0]))
            first_secs = time.perf_counter() - start_secs
            yield _check_golden_images(connection, answers, expected)
            yield from _check_latency(connection, answers, expected, first_secs, max_p99_ms)
        yield _check_batch_sizes(connection, expected)


def _check_version(connection: Connection, expected: Expectation) -> ServerCheck:
    version = connection.metadata().version
    failure = None
    if version != expected.version:
        failure = f"version {version} answers, and the export is version {expected.version}; wait until it is loaded"
    return ServerCheck(name=f"version, {connection.api}", seen=str(version), failure=failure)


def _check_signatures(connection: Connection, expected: Expectation) -> ServerCheck:
    found = connection.metadata().signatures
    wrong = []
    for name, info in expected.signature.inputs.items():
        wanted = {info.name: (_DTYPES[info.dtype], _shape_of(info.shape))}
        outputs = {o.name: (_DTYPES[o.dtype], _shape_of(o.shape)) for o in expected.signature.outputs}
        outputs = {o.name: outputs[o.name] for o in expected.signature.outputs if name in o.signatures}
        if name not in found:
            wrong.append(f"there is no signature {name}")
            continue
        inputs = {key: (spec.dtype, spec.shape) for key, spec in found[name].inputs.items()}
        if inputs != wanted:
            wrong.append(f"signature {name} takes {inputs}, expected {wanted}")
        # Shapes of outputs are as the exporter's graph infers them, and may say less.
        missing = set(outputs) - set(found[name].outputs)
        if missing:
            wrong.append(f"signature {name} lacks the output {', '.join(sorted(missing))}")
    return ServerCheck(
        name=f"signatures, {connection.api}", seen=", ".join(sorted(found)), failure="; ".join(wrong) or None
    )


def _shape_of(shape: list[int | None]) -> tuple[int, ...]:
    return tuple(-1 if size is None else size for size in shape)


def _check_golden_images(connection: Connection, answers: Answers, expected: Expectation) -> ServerCheck:
    rows = np.arange(len(answers.probabilities))
    outputs = _predict(connection, answers, expected, rows)
    difference = _difference(outputs, answers, rows)
    failure = None
    if difference > answers.max_difference:
        failure = (
            f"a probability differs by {difference:.2g} from what was published, where {answers.max_difference:.2g} is "
            "allowed: the server has another model or damaged weights; copy the export again"
        )
    else:
        failure = _contradiction(outputs, expected)
    return ServerCheck(
        name=f"golden images, {connection.api} {answers.input_name}",
        seen=f"{len(rows)} images, largest difference {difference:.2g}",
        failure=failure,
        figures={"max_difference": _finite(difference), "max_allowed": answers.max_difference},
    )


def _contradiction(outputs: dict[str, Array], expected: Expectation) -> str | None:
    """Return what the label and class of an image say against its probabilities, if they do."""
    names = expected.signature.class_names
    if expected.signature.thresholds is None:
        wanted = decide(outputs[PROBABILITIES], None)
        for row, class_id in enumerate(outputs[CLASS_ID]):
            if class_id != wanted[row]:
                return f"class_id is {class_id} for golden image {row}, whose most probable class is {wanted[row]}"
    for row, (class_id, label) in enumerate(zip(outputs[CLASS_ID], outputs[LABEL], strict=True)):
        if label.decode(errors="replace") != names[class_id]:
            return (
                f"golden image {row} is of class {class_id}, which is {names[class_id]!r} in the export and "
                f"{label.decode(errors='replace')!r} on the server: the order of its labels is another; copy the "
                "export again"
            )
    return None


def _check_latency(
    connection: Connection, answers: Answers, expected: Expectation, first_secs: float, max_p99_ms: float | None
) -> Iterator[ServerCheck]:
    num_images = len(answers.probabilities)
    secs = []
    for number in range(_NUM_TIMED):
        start_secs = time.perf_counter()
        _predict(connection, answers, expected, np.array([number % num_images]))
        secs.append(time.perf_counter() - start_secs)
    p50_ms, p99_ms = (float(np.quantile(secs, q)) * 1e3 for q in (0.5, 0.99))
    first_ms, slowest_ms = first_secs * 1e3, max(secs) * 1e3
    where = f"{connection.api} {answers.input_name}"
    failure = None
    if first_ms > _COLD_FACTOR * slowest_ms and first_ms - slowest_ms > _COLD_MARGIN_MS:
        failure = (
            f"the first answer took {first_ms:.0f} ms and later ones at most {slowest_ms:.1f} ms: the version was not "
            "warmed up; copy it with its assets.extra/tf_serving_warmup_requests"
        )
    yield ServerCheck(
        name=f"first answer, {where}",
        seen=f"{first_ms:.1f} ms, then at most {slowest_ms:.1f} ms",
        failure=failure,
        figures={"first_ms": first_ms},
    )
    failure = None
    if max_p99_ms is not None and p99_ms > max_p99_ms:
        failure = f"p99 is {p99_ms:.1f} ms, and at most {max_p99_ms:g} ms are allowed"
    yield ServerCheck(
        name=f"latency, {where}",
        seen=f"p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms of {_NUM_TIMED} requests with one image",
        failure=failure,
        figures={"p50_ms": p50_ms, "p99_ms": p99_ms},
    )


def _check_batch_sizes(connection: Connection, expected: Expectation) -> ServerCheck:
    """Check that a request of every size that clients may send is answered row by row as single images are."""
    largest = 0.0
    answers = expected.answers[-1]
    for size in range(1, cluster_batch_size() + 1):
        rows = np.arange(size) % len(answers.probabilities)
        difference = _difference(_predict(connection, answers, expected, rows), answers, rows)
        largest = max(largest, difference)
        if difference > answers.max_difference:
            failure = f"in a request of {size} images a probability differs by {difference:.2g} from what was published"
            break
    else:
        failure = None
    return ServerCheck(
        name=f"batch sizes, {connection.api} {answers.input_name}",
        seen=f"1 to {size}, largest difference {largest:.2g}",
        failure=failure,
        figures={"max_difference": _finite(largest)},
    )


def _predict(connection: Connection, answers: Answers, expected: Expectation, rows: Array) -> dict[str, Array]:
    values = expected.values_of(answers, rows)
    if isinstance(values, np.ndarray):
        return connection.predict(answers.signature_name, answers.input_name, values)
    return predict_files(
        lambda encoded: connection.predict(answers.signature_name, answers.input_name, encoded), values
    )


def _difference(outputs: dict[str, Array], answers: Answers, rows: Array) -> float:
    """Return the largest difference of a probability; infinite for another number of rows or classes, or for NaN."""
    found, wanted = outputs.get(PROBABILITIES), answers.probabilities[rows]
    if found is None or found.shape != wanted.shape or not np.isfinite(found.astype(np.float64)).all():
        return float("inf")
    return float(np.abs(found.astype(np.float64) - wanted).max())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
