"""Make every artifact of an export, run the parity gate over them, and only then publish the directory."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from export.convert.conversion import Conversion
from export.convert.inference_model import InferenceModel
from export.convert.to_saved_model import NUM_WARMUP_IMAGES, write_saved_model
from export.documents import model_card, readme
from export.files.checksums import Checksums
from export.files.formats import DEFAULT_ONNX_OPSET, SAVED_MODEL_BFLOAT16, Format, check_num_images, check_onnx_opset
from export.files.parity import Artifact, ParityReport
from export.files.provenance import ExportProvenance, Provenance
from export.files.signature import FILE_NAME as SIGNATURE_FILE
from export.files.signature import OPTIONAL_OUTPUTS, Signature
from export.gate.golden import Golden, choose_golden_images
from export.gate.int8_fallbacks import replace_over_budget
from export.gate.prove_versions import prove_versions
from export.gate.replay import answer_golden
from export.gate.run_gate import run_gate
from export.runtime.runtimes import CachedRuntime, KerasRuntime, Runtime
from export.runtime.samples import Batch, ImageSource, read_batch, spread_indices
from trainer.console.output import note
from trainer.errors import ArtifactError, ExportError, ParityError
from trainer.system import atomic
from trainer.system.names import check_version


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """A model to export, with everything that decides the export.

    Attributes:
        model: a float32 Keras classifier: pixels 0 to 255 at the signature's size in, logits out.
        validation: images to compare every artifact on.
        training: images to calibrate integer formats with.
        max_parity_images: number of `validation` images to use, evenly spread; None: all.
        onnx_opset: the operator set of the ONNX files.
        counts_up: `version` was chosen automatically; `trainer publish` may choose the next free one.
        build_bfloat16: builds the model with arithmetic in bfloat16; only for the format saved_model-bfloat16.
    """

    model: Any
    signature: Signature
    version: int
    formats: Sequence[Format]
    validation: ImageSource
    training: ImageSource
    provenance: Provenance
    max_parity_images: int | None = None
    onnx_opset: int = DEFAULT_ONNX_OPSET
    counts_up: bool = False
    build_bfloat16: Callable[[], Any] | None = None


def check_target(export_dir: pathlib.Path, *, overwrite: bool) -> None:
    """Raise ArtifactError if `export_dir` holds something that this export may not replace."""
    if not export_dir.exists() or (export_dir.is_dir() and not any(export_dir.iterdir())):
        return
    if not (export_dir / SIGNATURE_FILE).is_file():
        raise ArtifactError(
            f"{export_dir} exists and is not an export, so it is left alone; give --out a new directory"
        )
    if not overwrite:
        raise ArtifactError(
            f"{export_dir} holds an export already; give --out a new directory, or replace it with --overwrite"
        )


def make_export(
    request: ExportRequest,
    export_dir: pathlib.Path,
    *,
    overwrite: bool = False,
    allow_failed: bool = False,
    on_report: Callable[[ParityReport], None] = lambda _: None,
) -> ParityReport:
    """Write the export to `export_dir`, whole and within its budgets or not at all.

    With `allow_failed`, artifacts that are merely over budget are published too, and marked in the report, the model
    card and the table. `on_report` is called with the gate's report before it is judged.

    Raises:
        UsageError: too few images to judge on, an invalid version, or an unsupported operator set.
        ArtifactError: `export_dir` holds something that must not be replaced.
        ExportError: a format cannot represent the model.
        ParityError: an artifact does not answer like the model; nothing was published.
    """
    check_target(export_dir, overwrite=overwrite)
    check_num_images(request.max_parity_images)
    check_onnx_opset(request.onnx_opset)
    check_version(request.version)
    signature = request.signature
    with atomic.new_directory(export_dir) as directory:
        reference = CachedRuntime(KerasRuntime(request.model, task=signature.task, temperature=signature.temperature))
        report = _make_and_compare(request, directory, reference, keep_over_budget=allow_failed)
        if allow_failed:
            report = report.allow_over_budget()
        on_report(report)
        report.raise_on_failure()
        golden = _answer_golden_images(request, directory, report, reference)
        _check_golden_answers(golden, report, signature)
        golden.save(directory)
        prove_versions(directory, report, golden, signature)
        signature.save(directory)
        report.save(directory)
        _write_documents(request, directory, report, allow_failed=allow_failed)
        Checksums.of(directory).save(directory)
        # Another export may have been written there meanwhile.
        check_target(export_dir, overwrite=overwrite)
    return report


def _answer_golden_images(
    request: ExportRequest, directory: pathlib.Path, report: ParityReport, reference: Runtime
) -> Golden:
    images = choose_golden_images(request.validation, reference, request.signature)
    return Golden(
        batch=images,
        probabilities=reference.predict_probabilities(images.images),
        answers=answer_golden(directory, report, images),
    )


def _write_documents(
    request: ExportRequest, directory: pathlib.Path, report: ParityReport, *, allow_failed: bool
) -> None:
    """Write model card, README and provenance."""
    signature, provenance = request.signature, request.provenance
    card = model_card.render(signature, report, provenance)
    (directory / model_card.FILE_NAME).write_text(card, encoding="utf-8")
    (directory / readme.FILE_NAME).write_text(readme.render(signature, report), encoding="utf-8")
    ExportProvenance.of(
        provenance,
        signature,
        report,
        version=request.version,
        counts_up=request.counts_up,
        options=_options_of(request, allow_failed),
    ).save(directory)


def _check_golden_answers(golden: Golden, report: ParityReport, signature: Signature) -> None:
    """Raise ParityError if an artifact's golden answers are uninformative, unless it is allowed."""
    for comparison in report.comparisons:
        if comparison.title in golden.answers and not comparison.allowed:
            failure = golden.describe_uninformative(comparison.title, signature.thresholds)
            if failure is not None:
                raise ParityError(f"{comparison.title}, {comparison.path}: {failure}")


def _make_and_compare(
    request: ExportRequest, directory: pathlib.Path, reference: Runtime, *, keep_over_budget: bool
) -> ParityReport:
    """Write and compare every artifact, and the fallbacks of int8 files over their budget."""
    signature, version = request.signature, request.version
    inference = InferenceModel(request.model, signature)
    gate = functools.partial(
        run_gate,
        reference=reference,
        reference_name=request.provenance.describe(),
        signature=signature,
        source=request.validation,
        max_images=request.max_parity_images,
    )
    with Conversion(
        inference, signature, request.training, version=version, onnx_opset=request.onnx_opset
    ) as conversion:
        artifacts = _write_artifacts(request, directory, inference, conversion)
        return replace_over_budget(
            gate(export_dir=directory, artifacts=artifacts),
            conversion=conversion,
            gate=gate,
            signature=signature,
            version=version,
            export_dir=directory,
            keep_over_budget=keep_over_budget,
            say=note,
        )


def _write_artifacts(
    request: ExportRequest, directory: pathlib.Path, inference: InferenceModel, conversion: Conversion
) -> list[Artifact]:
    signature = request.signature
    artifacts = []
    for wanted in request.formats:
        artifact = Artifact.of(wanted, signature, request.version)
        path = directory / artifact.path
        path.parent.mkdir(parents=True, exist_ok=True)
        note(f"making {wanted.name}")
        if wanted.kind == "saved_model":
            warmup = _read(request.validation, NUM_WARMUP_IMAGES, signature)
            own = _in_bfloat16(request) if wanted == SAVED_MODEL_BFLOAT16 else inference
            write_saved_model(own, signature, path, warmup)
        else:
            path.write_bytes(conversion.convert(wanted))
        artifacts.append(artifact)
    return artifacts


def _in_bfloat16(request: ExportRequest) -> InferenceModel:
    if request.build_bfloat16 is None:
        raise ExportError(f"this model cannot be built in bfloat16; leave {SAVED_MODEL_BFLOAT16.name} out of --formats")
    return InferenceModel(request.build_bfloat16(), request.signature, keeps_weights_in="bfloat16")


def _read(source: ImageSource, num_images: int, signature: Signature) -> Batch:
    return read_batch(source, spread_indices(source.num_images, num_images), signature.geometry)


def _options_of(request: ExportRequest, allow_failed: bool) -> list[str]:
    """Return the options that reproduce this export even if defaults change."""
    signature = request.signature
    outputs = [name for name in OPTIONAL_OUTPUTS if signature.has_output(name)]
    options = {
        "--out": "EXPORT",
        "--formats": ",".join(wanted.name for wanted in request.formats),
        "--which": request.provenance.which,
        "--weights": "averages" if request.provenance.has_averages else "raw",
        **({"--outputs": ",".join(outputs)} if outputs else {}),
        "--name": signature.model_name,
        "--version": str(request.version),
        "--parity-images": str(request.max_parity_images or 0),
        "--onnx-opset": str(request.onnx_opset),
    }
    words = [word for option in options.items() for word in option]
    words.append("--no-calibrate" if signature.temperature is None else "--calibrate")
    return [*words, "--allow-failed"] if allow_failed else words
