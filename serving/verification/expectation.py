"""Read from an export's files how a server that has loaded it must answer, without running a model."""

import dataclasses
import pathlib

import numpy as np

from export.files.parity import Artifact, ParityReport
from export.files.provenance import ExportProvenance
from export.files.signature import (
    IMAGE_BYTES,
    IMAGES,
    SIGNATURE_IMAGE_BYTES,
    SIGNATURE_IMAGES,
    Signature,
)
from export.gate.golden import Golden, max_replay_difference
from export.runtime.runtimes import Probabilities
from export.runtime.samples import Batch
from serving.models.base_path import base_path_of
from serving.protocol.tensors import Array
from trainer.errors import ArtifactError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """The published answers to the golden images through one input.

    Attributes:
        signature_name, input_name: of the SavedModel.
        probabilities: [n, classes].
        max_difference: that is allowed of each.
    """

    signature_name: str
    input_name: str
    probabilities: Probabilities
    max_difference: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expectation:
    """An export as a server must have it: its version, its contract, and its answers to the golden images."""

    version: int
    signature: Signature
    batch: Batch
    answers: list[Answers]

    @classmethod
    def load(cls, export_dir: pathlib.Path) -> "Expectation":
        """Read an export. Raises ArtifactError if it is not finished or holds no SavedModel."""
        signature, golden = Signature.load(export_dir), Golden.load(export_dir)
        report = ParityReport.load(export_dir)
        artifact = _served_artifact(export_dir, signature, report)
        return cls(
            version=ExportProvenance.load(export_dir).version,
            signature=signature,
            batch=golden.batch,
            answers=[
                Answers(
                    signature_name=SIGNATURE_IMAGES if c.input == IMAGES else SIGNATURE_IMAGE_BYTES,
                    input_name=c.input,
                    probabilities=golden.answers[c.title],
                    max_difference=max_replay_difference(artifact.budget, golden.answers[c.title]),
                )
                for c in report.inputs_of(artifact)
            ],
        )

    def values_of(self, answers: Answers, rows: Array) -> list[bytes] | Array:
        """Return the golden images of `rows` as that input takes them."""
        if answers.input_name == IMAGE_BYTES:
            return [self.batch.encoded[row] for row in rows]
        pixels: Array = self.batch.images[rows].astype(np.float32)
        return pixels


def _served_artifact(export_dir: pathlib.Path, signature: Signature, report: ParityReport) -> Artifact:
    """Return the SavedModel that `trainer serve` and the manifests take from an export."""
    base_path = base_path_of(export_dir, signature)
    for artifact in report.artifacts():
        if base_path in (export_dir / artifact.path).parents:
            return artifact
    raise ArtifactError(f"{export_dir} holds no SavedModel, which a server needs; export it with --formats saved_model")
