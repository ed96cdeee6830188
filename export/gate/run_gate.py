"""The parity gate: every artifact, in its real runtime, against the model it was made from, on real images.

This module owns `EXPORT/parity.json`. The file holds only what two exports of one run have in common; the times go
to the screen and into `--json`.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from export.files.formats import FLOAT32_FORMATS, MIN_NUM_IMAGES
from export.files.parity import (
    Artifact,
    Comparison,
    ParityReport,
    size_on_disk,
)
from export.files.signature import Signature
from export.gate.artifact_checks import Outcome, Subject, open_subjects
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
    """Runs every artifact of `export_dir` over `source` (at most `max_images`, evenly spread; None: all).

    Nothing is raised for an artifact that is over its budget or does not run: the report says so, see
    `ParityReport.raise_on_failure`.
    """
    # One artifact that answers like the model itself is enough to tell what a client's own decoding does.
    for_client = next((a for a in artifacts if a.format in FLOAT32_FORMATS), None)
    subjects = [
        (a, s)
        for a in artifacts
        for s in open_subjects(export_dir / a.path, signature, a.budget, has_client=a is for_client)
    ]
    indices = spread_indices(source.num_images, max_images)
    # The answers of the model and of every artifact in float32, and a comparison in float64.
    check_fits(
        len(indices) * len(signature.class_names) * (4 * (len(subjects) + 1) + 32),
        f"comparing {len(indices):,} images on {len(signature.class_names):,} classes in {len(subjects)} ways",
        f"compare fewer with --parity-images {MIN_NUM_IMAGES}, or make fewer files with --formats",
    )
    answers, labels = [], []
    with task_progress("comparing images", len(indices)) as progress:
        for batch in iterate_batches(source, indices, signature.geometry, _BATCH_SIZE):
            answers.append(reference.predict_probabilities(batch.images))
            labels.append(batch.class_ids)
            for _, subject in subjects:
                if subject.expect is None:
                    subject.answer(batch)
            progress.advance(len(batch.class_ids))
    expected, class_ids = np.concatenate(answers), np.concatenate(labels)
    odd = _ask_with_odd_files([s for _, s in subjects], signature, source)
    return ParityReport(
        signature_hash=signature.content_hash(),
        reference=reference_name,
        dataset_name=source.name,
        dataset_hash=source.content_hash,
        split=source.split,
        num_images=len(indices),
        num_images_in_split=source.num_images,
        comparisons=[
            _describe(
                a,
                s,
                odd[s] if s in odd else s.compare(expected, class_ids, signature),
                size_on_disk(export_dir / a.path),
            )
            for a, s in subjects
        ],
    )


def _ask_with_odd_files(
    subjects: Sequence[Subject], signature: Signature, source: ImageSource
) -> dict[Subject, Outcome]:
    """The outcome of each of the `subjects` that take them."""
    odd = [subject for subject in subjects if subject.expect is not None]
    if not odd:
        return {}
    files = make_odd_files(source, signature.geometry)
    return {subject: subject.compare_odd_files(files, signature) for subject in odd}


def _describe(artifact: Artifact, subject: Subject, outcome: Outcome, num_bytes: int) -> Comparison:
    return Comparison(
        format=artifact.format,
        path=artifact.path,
        input=subject.input,
        runtime=subject.runtime_name,
        num_bytes=num_bytes,
        budget=subject.budget,
        figures=outcome.figures,
        failure=outcome.failure,
        ms_per_image=outcome.ms_per_image,
    )
