"""Verify an export on this machine, without the run: replay golden images, and given a dataset the parity gate."""

import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from export.files.checksums import Checksums
from export.files.formats import FLOAT32_FORMATS
from export.files.parity import Artifact, ParityReport
from export.files.read_file import StrictModel
from export.files.signature import IMAGE_BYTES, LABELS_FILE, PROBABILITIES, Signature
from export.gate.golden import Golden, max_replay_difference
from export.gate.run_gate import run_gate
from export.runtime.client_images import predict_files
from export.runtime.runtimes import Probabilities, Runtime, SavedModelRuntime, open_runtime
from export.runtime.samples import Batch, ImageSource
from trainer.errors import ArtifactError, ParityError


class GoldenResult(StrictModel):
    """How one input of one artifact answers the golden images, compared with its published answers.

    `max_difference` is null, and `failure` says why, if it did not answer all of them with numbers.
    """

    title: str
    path: str
    max_difference: float | None
    max_allowed: float
    failure: str | None


class Verification(StrictModel):
    """The answer of `trainer verify`; `parity` is null if no dataset was given."""

    schema_version: Literal[1] = 1
    num_files: int
    num_golden_images: int
    golden: list[GoldenResult]
    parity: ParityReport | None

    def answer(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        parity = self.parity.answer() if self.parity else None
        passed = not any(r.failure for r in self.golden) and (parity is None or parity["passed"])
        return {**self.model_dump(mode="json"), "parity": parity, "passed": passed}

    def raise_on_failure(self) -> None:
        """Raise ParityError naming the first artifact that failed."""
        for result in self.golden:
            if result.failure:
                raise ParityError(f"{result.title}, {result.path}: {result.failure}")
        if self.parity:
            self.parity.raise_on_failure()


def verify_export(
    export_dir: pathlib.Path,
    *,
    source: ImageSource | None = None,
    max_images: int | None = None,
) -> Verification:
    """Verify the checksums of an export, replay its golden images, then run the gate over `source`.

    The gate's reference is the first float32 artifact of the export, through its `images` input, whose answers the
    golden replay has just compared with the model's. Failures are in the result, see `Verification.raise_on_failure`.

    Raises:
        ArtifactError: `export_dir` is not a finished export, or `source` is given and no artifact can be the reference.
        ParityError: a file was changed, added or removed after the export was published; it is named.
    """
    checksums = Checksums.load(export_dir)
    checksums.verify(export_dir)
    signature = Signature.load(export_dir)
    if (export_dir / LABELS_FILE).read_text(encoding="utf-8") != signature.labels_text():
        raise ParityError(f"{LABELS_FILE} does not list the classes of the signature in their order; export again")
    published = ParityReport.load(export_dir)
    golden = Golden.load(export_dir)
    parity = None
    if source is not None:
        reference, reference_name = _open_reference(export_dir, published.artifacts())
        parity = run_gate(
            reference=reference,
            reference_name=reference_name,
            signature=signature,
            export_dir=export_dir,
            artifacts=published.artifacts(),
            source=source,
            max_images=max_images,
        ).allow_over_budget(published.allowed_paths())
    return Verification(
        num_files=len(checksums.files),
        num_golden_images=len(golden.batch.images),
        golden=replay_golden(export_dir, published, golden, signature),
        parity=parity,
    )


def answer_golden(export_dir: pathlib.Path, report: ParityReport, batch: Batch) -> dict[str, Probabilities]:
    """Return the answers of each input of each artifact to `batch`, by the title of its comparison."""
    answers: dict[str, Probabilities] = {}
    for artifact in report.artifacts():
        runtime = open_runtime(export_dir / artifact.path)
        for comparison in report.inputs_of(artifact):
            answers[comparison.title] = _answer(runtime, comparison.input, batch)
    return answers


def replay_golden(
    export_dir: pathlib.Path, report: ParityReport, golden: Golden, signature: Signature
) -> list[GoldenResult]:
    """Run every artifact on the golden images; one that does not run is a failed result.

    So is one whose published answers are uninformative, unless it was published on request: it could answer anything.
    """
    results: list[GoldenResult] = []
    for artifact in report.artifacts():
        comparisons = report.inputs_of(artifact)
        try:
            runtime = open_runtime(export_dir / artifact.path)
            answers = [_answer(runtime, c.input, golden.batch) for c in comparisons]
        except ArtifactError as e:
            failed = (_judge(c.title, artifact, None, str(e)) for c in comparisons)
            results.extend(failed)
            continue
        for comparison, answer in zip(comparisons, answers, strict=True):
            result = _compare(comparison.title, artifact, golden.answers.get(comparison.title), answer)
            if not (result.failure or comparison.allowed):
                failure = golden.describe_uninformative(result.title, signature.thresholds)
                result = result.model_copy(update={"failure": failure})
            results.append(result)
    return results


def _answer(runtime: Runtime, input_name: str, batch: Batch) -> Probabilities:
    if input_name == IMAGE_BYTES:
        assert isinstance(runtime, SavedModelRuntime), "the only artifact that takes encoded images"
        probabilities: Probabilities = predict_files(runtime.predict_encoded, batch.encoded)[PROBABILITIES]
        return probabilities
    return runtime.predict_probabilities(batch.images)


def _compare(title: str, artifact: Artifact, expected: Probabilities | None, answer: Probabilities) -> GoldenResult:
    if expected is None or expected.shape != answer.shape:
        return _judge(title, artifact, None, "the golden file holds no such answers; export again")
    allowed = max_replay_difference(artifact.budget, expected)
    if not (np.isfinite(answer).all() and np.isfinite(expected).all()):
        return _judge(title, artifact, None, "NaN or infinity in the answers to the golden images")
    difference = float(np.abs(answer.astype(np.float64) - expected).max())
    if difference <= allowed:
        return _judge(title, artifact, difference, None, allowed)
    failure = (
        f"a probability of a golden image differs by {difference:.2g} from what was published, "
        f"where {allowed:.2g} is allowed"
    )
    return _judge(title, artifact, difference, failure, allowed)


def _judge(
    title: str, artifact: Artifact, difference: float | None, failure: str | None, allowed: float | None = None
) -> GoldenResult:
    return GoldenResult(
        title=title,
        path=artifact.path,
        max_difference=difference,
        max_allowed=artifact.budget.max_replay_difference if allowed is None else allowed,
        failure=failure,
    )


def _open_reference(export_dir: pathlib.Path, artifacts: Sequence[Artifact]) -> tuple[Runtime, str]:
    for artifact in artifacts:
        if artifact.format in FLOAT32_FORMATS:
            return open_runtime(export_dir / artifact.path), f"{artifact.path}, through images"
    raise ArtifactError(
        f"{export_dir} holds no float32 artifact to compare the others with; verify it without --data, or export it "
        f"with {FLOAT32_FORMATS[0]} among the --formats"
    )
