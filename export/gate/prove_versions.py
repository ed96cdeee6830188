"""Write into each SavedModel version of an export what proves it by itself, see `version_proof`."""

import pathlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from export.convert.to_saved_model import count_warmup_requests
from export.files.formats import FORMATS
from export.files.parity import Artifact, ParityReport
from export.files.signature import IMAGE_BYTES, IMAGES, SIGNATURE_IMAGE_BYTES, SIGNATURE_IMAGES, Signature
from export.files.version_proof import GoldenAnswer, VersionChecksums, VersionGolden
from export.gate.golden import Golden, max_replay_difference
from export.runtime.runtimes import Probabilities

_SIGNATURE_OF: Final = {IMAGES: SIGNATURE_IMAGES, IMAGE_BYTES: SIGNATURE_IMAGE_BYTES}


def prove_versions(export_dir: pathlib.Path, report: ParityReport, golden: Golden, signature: Signature) -> None:
    """Write golden answers and checksums into every SavedModel of `export_dir`, which must not change after that."""
    for artifact in report.artifacts():
        if FORMATS[artifact.format].kind == "saved_model":
            version_dir = export_dir / artifact.path
            _golden_of(artifact, version_dir, report, golden, signature).save(version_dir)
            VersionChecksums.of(version_dir).save(version_dir)


def _golden_of(
    artifact: Artifact, version_dir: pathlib.Path, report: ParityReport, golden: Golden, signature: Signature
) -> VersionGolden:
    answers = {}
    for comparison in report.inputs_of(artifact):
        probabilities = golden.answers[comparison.title]
        answers[_SIGNATURE_OF[comparison.input]] = GoldenAnswer(
            probabilities=probabilities,
            max_difference=max_replay_difference(artifact.budget, probabilities),
            labels=_labels_of(probabilities, signature.class_names),
        )
    return VersionGolden(
        images=golden.batch.images,
        encoded=golden.batch.encoded,
        num_warmup_requests=count_warmup_requests(version_dir),
        answers=answers,
    )


def _labels_of(probabilities: Probabilities, class_names: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    """Return what the signature promises as `label`, not what the graph answers: an error in its order shows."""
    return np.array([class_names[i].encode() for i in probabilities.argmax(axis=-1)], np.bytes_)
