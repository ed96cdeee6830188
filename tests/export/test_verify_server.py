"""`trainer verify --server`: a server with the export passes, and each way to have loaded another is named."""

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from digits_classifier import SIGNATURE
from exported import Exported
from typer.testing import CliRunner

from export.files.signature import CLASS_ID, IMAGE_BYTES, IMAGES, LABEL, PROBABILITIES, STATUS, STATUS_OK
from export.gate.golden import Golden
from serving.clients.connections import Metadata
from serving.models.model import Model, Models
from serving.models.saved_model import SavedModelRuntime
from serving.models.servable import Runtime, Serving, load_saved_model
from serving.protocol.tensors import Array, SignatureSpec
from serving.rest.rest_server import build_app
from serving.verification import verify_server as checks
from serving.verification.expectation import Expectation
from serving.verification.server_report import ServerReport
from serving.verification.verify_server import check_server, verify_server
from tests.serving.running_server import running_server
from trainer.cli.app import app
from trainer.errors import ArtifactError, ParityError

MODEL = "digits"


class Changed:
    """A runtime whose outputs are changed: what a server answers that has loaded another model than the export's."""

    def __init__(self, path: pathlib.Path, change: Callable[[dict[str, Array]], dict[str, Array]]) -> None:
        self._runtime, self._change = SavedModelRuntime(path), change
        self.signature_defs, self.signatures = self._runtime.signature_defs, self._runtime.signatures
        self.platform = self._runtime.platform

    def run(self, signature: SignatureSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._change(self._runtime.run(signature, inputs))


@pytest.fixture(scope="module")
def golden(exported: Exported) -> Golden:
    return Golden.load(exported.directory)


@contextlib.contextmanager
def serve(
    base_path: pathlib.Path, golden: Golden, load: Callable[[pathlib.Path], Runtime] = load_saved_model
) -> Iterator[str]:
    """Serves a base path, warmed up."""
    model = Model(name=MODEL, base_path=base_path, serving=Serving(load=load))
    model.load()
    model.find().run(None, {IMAGE_BYTES: np.array(golden.batch.encoded[:1], object)})
    model.find().run(IMAGES, {IMAGES: golden.batch.images[:1].astype(np.float32)})
    with running_server(build_app(Models(model))) as url:
        yield url


@pytest.fixture(scope="module")
def base_path(exported: Exported) -> pathlib.Path:
    return exported.directory / "saved_model" / MODEL


def failures(report: ServerReport) -> dict[str, str]:
    """Without what the clock says: the machine may be busy."""
    return {c.name: c.failure for c in report.checks if c.failure and not c.name.startswith("first answer")}


def test_a_server_with_the_export_is_fit_for_traffic(
    exported: Exported, base_path: pathlib.Path, golden: Golden
) -> None:
    with serve(base_path, golden) as url:
        done = CliRunner().invoke(app, ["verify", str(exported.directory), "--server", url, "--json"])
        answer = json.loads(done.stdout)
        assert done.exit_code == int(not answer["passed"])
        one_version = verify_server(
            exported.directory, server=f"{url}/v1/models/{MODEL}/versions/3", grpc=None, timeout_secs=600
        )
    assert answer["version"] == 3
    assert [check["name"] for check in answer["checks"]] == [
        "version, REST",
        "signatures, REST",
        "golden images, REST images",
        "first answer, REST images",
        "latency, REST images",
        "golden images, REST image_bytes",
        "first answer, REST image_bytes",
        "latency, REST image_bytes",
        "batch sizes, REST image_bytes",
    ]
    assert answer["checks"][-1]["seen"].startswith("1 to 16, ")
    assert failures(one_version) == {}


def darker(outputs: dict[str, Array]) -> dict[str, Array]:
    mixed = outputs[PROBABILITIES] * 0.99 + 0.01 / outputs[PROBABILITIES].shape[1]
    return {**outputs, PROBABILITIES: mixed.astype(np.float32)}


def relabelled(outputs: dict[str, Array]) -> dict[str, Array]:
    names = [name.encode() for name in SIGNATURE.class_names]
    next_name = dict(zip(names, [*names[1:], names[0]], strict=True))
    return {**outputs, LABEL: np.array([next_name[label] for label in outputs[LABEL]], object)}


def a_class_less(outputs: dict[str, Array]) -> dict[str, Array]:
    return {**outputs, PROBABILITIES: np.zeros_like(outputs[PROBABILITIES][:, :9])}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (darker, "a probability differs by 0.00.* another model or damaged weights"),
        (relabelled, "the order of its labels is another"),
        (a_class_less, "a probability differs by inf"),
    ],
)
def test_another_model_is_found_through_every_input(
    exported: Exported, base_path: pathlib.Path, golden: Golden, change: Any, told: str
) -> None:
    with serve(base_path, golden, lambda path: Changed(path, change)) as url:
        report = verify_server(exported.directory, server=url, grpc=None, timeout_secs=600)
        done = CliRunner().invoke(app, ["verify", str(exported.directory), "--server", url])
    wrong = failures(report)
    for name in ("images", "image_bytes"):
        assert re.search(told, wrong[f"golden images, REST {name}"])
    assert isinstance(done.exception, ParityError) and "must not get traffic" in str(done.exception)


def test_another_version_and_other_signatures_are_named(
    exported: Exported, base_path: pathlib.Path, golden: Golden, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(base_path / "3", tmp_path / MODEL / "4")
    with serve(tmp_path / MODEL, golden) as url:
        report = verify_server(exported.directory, server=url, grpc=None, timeout_secs=600)
    assert failures(report) == {
        "version, REST": "version 4 answers, and the export is version 3; wait until it is loaded"
    }


def test_no_server_and_no_such_model_are_errors_with_the_address(
    exported: Exported, base_path: pathlib.Path, golden: Golden
) -> None:
    with serve(base_path, golden) as url, pytest.raises(ArtifactError, match=r"nope/metadata answered 404"):
        verify_server(exported.directory, server=f"{url}/v1/models/nope", grpc=None)
    for address in ({"server": "http://127.0.0.1:9", "grpc": None}, {"server": None, "grpc": "127.0.0.1:9"}):
        with pytest.raises(ArtifactError, match=r"no server answers at .*127\.0\.0\.1:9"):
            verify_server(exported.directory, **address, timeout_secs=600)


class Timed:
    """A connection that takes as long as it is told, on a clock of its own, and answers as the export does."""

    api = "REST"

    def __init__(self, expected: Expectation, first_secs: float, later_secs: Callable[[int], float]) -> None:
        self._expected, self._first_secs, self._later_secs = expected, first_secs, later_secs
        self._num_calls: dict[str, int] = {}
        self.now_secs = 0.0

    def metadata(self) -> Metadata:
        return Metadata(self._expected.version, {})

    def predict(self, signature_name: str, input_name: str, values: Any) -> dict[str, Array]:
        number = self._num_calls[input_name] = self._num_calls.get(input_name, -1) + 1
        self.now_secs += self._first_secs if number == 0 else self._later_secs(number)
        answers = next(a for a in self._expected.answers if a.input_name == input_name)
        probabilities = answers.probabilities[np.arange(len(values)) % len(answers.probabilities)]
        class_ids = probabilities.argmax(axis=-1)
        names = self._expected.signature.class_names
        return {
            PROBABILITIES: probabilities,
            CLASS_ID: class_ids,
            LABEL: np.array([names[class_id].encode() for class_id in class_ids], object),
            STATUS: np.array([STATUS_OK.encode()] * len(values), object),
        }

    def __enter__(self) -> "Timed":
        return self

    def __exit__(self, *exception: object) -> None: ...


@pytest.mark.parametrize(
    ("first_secs", "later_secs", "max_p99_ms", "expected"),
    [
        (0.5, lambda n: 0.01, None, {"first answer"}),
        (0.15, lambda n: 0.01, 11.0, set()),
        (2.0, lambda n: 0.8 if n == 7 else 0.01, None, set()),
        (0.5, lambda n: 0.2, None, set()),
        (0.01, lambda n: 0.5 if n % 20 == 0 else 0.01, 100.0, {"latency"}),
        (0.01, lambda n: 0.5 if n % 20 == 0 else 0.01, None, set()),
    ],
)
def test_a_cold_version_and_slow_answers_are_told_by_the_clock(
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
    first_secs: float,
    later_secs: Callable[[int], float],
    max_p99_ms: float | None,
    expected: set[str],
) -> None:
    wanted = Expectation.load(exported.directory)
    connection = Timed(wanted, first_secs, later_secs)
    monkeypatch.setattr(checks.time, "perf_counter", lambda: connection.now_secs)
    wrong = {c.name.partition(",")[0] for c in check_server([connection], wanted, max_p99_ms=max_p99_ms) if c.failure}
    assert wrong == expected | {"signatures"}


def test_a_server_is_measured_under_loads(exported: Exported, base_path: pathlib.Path, golden: Golden) -> None:
    command = ["bench", "serve", str(exported.directory), "--concurrency=2", "--rate=20", "--secs=0.5", "--json"]
    with serve(base_path, golden) as url:
        done = CliRunner().invoke(app, [*command, "--server", url, "--batch-size=3", "--input=images"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["input"], answer["batch_size"]) == (MODEL, "images", 3)
    assert [(r["loop"], r["concurrency"], r["rate"]) for r in answer["results"]] == [
        ("closed", 2, None),
        ("open", None, 20.0),
    ]
    for result in answer["results"]:
        assert result["num_answers"] > 0 and result["errors"] == {}
        assert result["images_per_sec"] == pytest.approx(3 * result["requests_per_sec"])
        assert 0 < result["latencies_ms"]["p50"] <= result["latencies_ms"]["p99.9"]
    done = CliRunner().invoke(app, command)
    assert "no server is given" in str(done.exception)
