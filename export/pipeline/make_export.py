"""Makes every artifact of an export, runs the parity gate over them, and only then lets the directory appear."""

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
from export.gate.int8_fallbacks import climb_ladders
from export.gate.replay import answer_golden
from export.gate.run_gate import run_gate
from export.runtime.runtimes import KerasRuntime, RememberedRuntime, Runtime
from export.runtime.samples import Batch, ImageSource, read_batch, spread_indices
from trainer.console.output import note
from trainer.errors import ArtifactError, ExportError, ParityError
from trainer.system import atomic
from trainer.system.names import check_version


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publication:
    """What is to be exported.

    model: a float32 Keras classifier: pixels 0 to 255 at the signature's size in, logits out.
    validation: the images that every artifact is compared on.
    training: the images that integer formats are calibrated on.
    max_parity_images: how many of `validation`, evenly spread; None: all.
    onnx_opset: the operator set of the ONNX files.
    counts_up: nobody asked for this `version`; `trainer publish` may give the export the next free one.
    build_bfloat16: makes the model again, with arithmetic in bfloat16; for the format saved_model-bfloat16 alone.
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
    """Raises ArtifactError where `export_dir` holds something that this export may not replace."""
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


def publish(
    publication: Publication,
    export_dir: pathlib.Path,
    *,
    overwrite: bool = False,
    allow_failed: bool = False,
    on_report: Callable[[ParityReport], None] = lambda _: None,
) -> ParityReport:
    """Writes the export to `export_dir`, whole and within its budgets or not at all.

    `on_report` is shown the report of the gate before it is judged. With `allow_failed`, artifacts that are merely
    over budget are published too, and marked in the report, the model card and the table.

    Raises:
        UsageError: too few images to judge on, no version, or an operator set that ONNX files cannot have.
        ArtifactError: something else is in the way.
        ExportError: a format cannot represent the model.
        ParityError: an artifact does not answer like the model; nothing was published.
    """
    check_target(export_dir, overwrite=overwrite)
    check_num_images(publication.max_parity_images)
    check_onnx_opset(publication.onnx_opset)
    check_version(publication.version)
    signature = publication.signature
    with atomic.new_directory(export_dir) as directory:
        reference = RememberedRuntime(
            KerasRuntime(publication.model, task=signature.task, temperature=signature.temperature)
        )
        report = _make_and_compare(publication, directory, reference, keep_over_budget=allow_failed)
        if allow_failed:
            report = report.allow_over_budget()
        on_report(report)
        report.raise_on_failure()
        golden_images = choose_golden_images(publication.validation, reference, signature)
        golden = Golden(
            batch=golden_images,
            probabilities=reference.predict_probabilities(golden_images.images),
            answers=answer_golden(directory, report, golden_images),
        )
        _raise_on_silence(golden, report, signature)
        golden.save(directory)
        signature.save(directory)
        report.save(directory)
        card = model_card.render(signature, report, publication.provenance)
        (directory / model_card.FILE_NAME).write_text(card, encoding="utf-8")
        (directory / readme.FILE_NAME).write_text(readme.render(signature, report), encoding="utf-8")
        ExportProvenance.of(
            publication.provenance,
            signature,
            report,
            version=publication.version,
            counts_up=publication.counts_up,
            options=_options_of(publication, allow_failed),
        ).save(directory)
        Checksums.of(directory).save(directory)
        # Another export may have taken the place in all this time.
        check_target(export_dir, overwrite=overwrite)
    return report


def _raise_on_silence(golden: Golden, report: ParityReport, signature: Signature) -> None:
    """Raises ParityError where the golden answers of an artifact, but for those allowed, say nothing of it."""
    for comparison in report.comparisons:
        if comparison.title in golden.answers and not comparison.allowed:
            silence = golden.find_silence(comparison.title, signature.thresholds)
            if silence is not None:
                raise ParityError(f"{comparison.title}, {comparison.path}: {silence}")


def _make_and_compare(
    publication: Publication, directory: pathlib.Path, reference: Runtime, *, keep_over_budget: bool
) -> ParityReport:
    """Writes every artifact, and the ladder's where an int8 file is over its budget, and compares them."""
    signature, version = publication.signature, publication.version
    inference = InferenceModel(publication.model, signature)
    gate = functools.partial(
        run_gate,
        reference=reference,
        reference_name=publication.provenance.describe(),
        signature=signature,
        source=publication.validation,
        max_images=publication.max_parity_images,
    )
    with Conversion(
        inference, signature, publication.training, version=version, onnx_opset=publication.onnx_opset
    ) as conversion:
        artifacts = _write_artifacts(publication, directory, inference, conversion)
        return climb_ladders(
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
    publication: Publication, directory: pathlib.Path, inference: InferenceModel, conversion: Conversion
) -> list[Artifact]:
    signature = publication.signature
    artifacts = []
    for wanted in publication.formats:
        artifact = Artifact.of(wanted, signature, publication.version)
        path = directory / artifact.path
        path.parent.mkdir(parents=True, exist_ok=True)
        note(f"making {wanted.name}")
        if wanted.kind == "saved_model":
            warmup = _read(publication.validation, NUM_WARMUP_IMAGES, signature)
            own = _in_bfloat16(publication) if wanted == SAVED_MODEL_BFLOAT16 else inference
            write_saved_model(own, signature, path, warmup)
        else:
            path.write_bytes(conversion.convert(wanted))
        artifacts.append(artifact)
    return artifacts


def _in_bfloat16(publication: Publication) -> InferenceModel:
    if publication.build_bfloat16 is None:
        raise ExportError(f"this model cannot be built in bfloat16; leave {SAVED_MODEL_BFLOAT16.name} out of --formats")
    return InferenceModel(publication.build_bfloat16(), publication.signature, keeps_weights_in="bfloat16")


def _read(source: ImageSource, num_images: int, signature: Signature) -> Batch:
    return read_batch(source, spread_indices(source.num_images, num_images), signature.geometry)


def _options_of(publication: Publication, allow_failed: bool) -> list[str]:
    """What gives the same export again, whatever has become the default meanwhile."""
    signature = publication.signature
    outputs = [name for name in OPTIONAL_OUTPUTS if signature.has_output(name)]
    options = {
        "--out": "EXPORT",
        "--formats": ",".join(wanted.name for wanted in publication.formats),
        "--which": publication.provenance.which,
        "--weights": "averages" if publication.provenance.has_averages else "raw",
        **({"--outputs": ",".join(outputs)} if outputs else {}),
        "--name": signature.model_name,
        "--version": str(publication.version),
        "--parity-images": str(publication.max_parity_images or 0),
        "--onnx-opset": str(publication.onnx_opset),
    }
    words = [word for option in options.items() for word in option]
    words.append("--no-calibrate" if signature.temperature is None else "--calibrate")
    return [*words, "--allow-failed"] if allow_failed else words
