"""The parity gate: run every artifact in its real runtime on real images and compare it with the trained model.

`EXPORT/parity.json` holds only what two exports of one run have in common; times go to the screen and `--json`.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.files.formats import FLOAT32_FORMATS, MIN_NUM_IMAGES
from export.files.parity import (
    Artifact,
    Comparison,
    ParityReport,
    size_on_disk,
)
from export.files.signature import Signature
from export.gate.artifact_checks import ArtifactCheck, Outcome, open_checks
from export.gate.odd_files import make_odd_files
from export.runtime.runtimes import Runtime
from export.runtime.samples import ImageSource, iterate_batches, spread_indices
from trainer.console.progress import task_progress
from trainer.system.memory import check_fits

_BATCH_SIZE = 32


def run_gate(
    *,
    reference: Runtime,
    reference_name: str,
    signature: Signature,
    export_dir: pathlib.Path,
    artifacts: Sequence[Artifact],
    source: ImageSource,
    max_images: int | None = None,
) -> ParityReport:
    """Run every artifact of `export_dir` over `source` (at most `max_images`, evenly spread; None: all).

    An artifact that is over its budget or does not run is not an error here but a failure in the report, see
    `ParityReport.raise_on_failure`.
    """
    # One artifact that answers like the model is enough to judge a client's own decoding.
    for_client = next((a for a in artifacts if a.format in FLOAT32_FORMATS), None)
    checks = [
        (artifact, check)
        for artifact in artifacts
        for check in open_checks(
            export_dir / artifact.path, signature, artifact.budget, has_client=artifact is for_client
        )
    ]
    indices = spread_indices(source.num_images, max_images)
    # The answers of the model and of every artifact in float32, and a comparison in float64.
    check_fits(
        len(indices) * len(signature.class_names) * (4 * (len(checks) + 1) + 32),
        f"comparing {len(indices):,} images on {len(signature.class_names):,} classes in {len(checks)} ways",
        f"compare fewer with --parity-images {MIN_NUM_IMAGES}, or make fewer files with --formats",
    )
    outcomes = _run_checks([check for _, check in checks], reference, source, indices, signature)
    return ParityReport(
        signature_hash=signature.content_hash(),
        reference=reference_name,
        dataset_name=source.name,
        dataset_hash=source.content_hash,
        split=source.split,
        num_images=len(indices),
        num_images_in_split=source.num_images,
        comparisons=[
            _describe(artifact, check, outcome, size_on_disk(export_dir / artifact.path))
            for (artifact, check), outcome in zip(checks, outcomes, strict=True)
        ],
    )


def _run_checks(
    checks: Sequence[ArtifactCheck],
    reference: Runtime,
    source: ImageSource,
    indices: npt.NDArray[np.int64],
    signature: Signature,
) -> list[Outcome]:
    """Run the checks on the images at `indices`, and those of odd files on odd files made from `source`."""
    answers, labels = [], []
    with task_progress("comparing images", len(indices)) as progress:
        for batch in iterate_batches(source, indices, signature.geometry, _BATCH_SIZE):
            answers.append(reference.predict_probabilities(batch.images))
            labels.append(batch.class_ids)
            for check in checks:
                if check.expect is None:
                    check.answer(batch)
            progress.advance(len(batch.class_ids))
    expected, class_ids = np.concatenate(answers), np.concatenate(labels)
    has_odd_files = any(check.expect for check in checks)
    odd_files = make_odd_files(source, signature.geometry) if has_odd_files else None
    return [
        check.compare_odd_files(odd_files, signature)
        if check.expect and odd_files
        else check.compare(expected, class_ids, signature)
        for check in checks
    ]


def _describe(artifact: Artifact, check: ArtifactCheck, outcome: Outcome, num_bytes: int) -> Comparison:
    return Comparison(
        format=artifact.format,
        path=artifact.path,
        input=check.input,
        runtime=check.runtime_name,
        num_bytes=num_bytes,
        budget=check.budget,
        figures=outcome.figures,
        failure=outcome.failure,
        ms_per_image=outcome.ms_per_image,
    )
