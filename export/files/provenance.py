"""`EXPORT/provenance.json`: the run, data, settings and packages that an export was made from.

Everything is derived from the run and the options: no times, hosts or paths, the same bytes every time.
"""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import trainer
from export.files.read_file import StrictModel, read_export_file
from trainer.metrics.evaluation import Evaluation
from trainer.run.checkpoint_store import Which
from trainer.system import atomic
from trainer.system.names import ModelName, Version

if TYPE_CHECKING:  # what reads the file needs no TensorFlow
    from export.files.parity import ParityReport
    from export.files.signature import Signature

FILE_NAME = "provenance.json"
SCHEMA_VERSION: Final = 1
# The packages that affect the bytes of an artifact.
_PACKAGES = ("ai-edge-litert", "h5py", "keras", "numpy", "onnx", "onnxruntime", "pillow", "tensorflow", "tf2onnx")


class RunOrigin(StrictModel):
    """The run of an export.

    Attributes:
        checkpoint, exported_weights: which of the run's weights are in the export.
        weights: the weights that training started from.
        config_sha256: of the settings as YAML, including defaults.
    """

    name: str
    identity: str
    global_step: int
    checkpoint: Literal["best", "last"]
    exported_weights: Literal["raw", "averages"]
    backbone: str
    weights: str
    precision: str
    config_sha256: str
    num_train_examples: int


class DatasetOrigin(StrictModel):
    """The dataset whose `split` the export was judged on; for a run, the one it was trained on."""

    name: str
    content_sha256: str
    split: str
    num_images_compared: int


class OriginalExport(StrictModel):
    """The export that `trainer publish` copied and renumbered; `checksums_sha256` is of its checksums."""

    version: Version
    checksums_sha256: str


class ExportProvenance(StrictModel):
    """The content of `provenance.json`.

    Attributes:
        version: of the SavedModel.
        version_counts_up: whether `version` was chosen automatically, so that publishing may choose the next free one.
        renumbered_from: null if the version is still that of the export.
        command: has RUN and EXPORT in place of paths.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model_name: ModelName
    version: Version
    version_counts_up: bool = False
    renumbered_from: OriginalExport | None = None
    signature_sha256: str
    command: list[str]
    run: RunOrigin
    dataset: DatasetOrigin
    trainer_version: str
    packages: dict[str, str]

    @classmethod
    def of(
        cls,
        provenance: "Provenance",
        signature: "Signature",
        report: "ParityReport",
        *,
        version: int,
        counts_up: bool,
        options: Sequence[str],
    ) -> "ExportProvenance":
        """Describe an export that passed its gate; `options` are those of the command, including defaults."""
        return cls(
            model_name=signature.model_name,
            version=version,
            version_counts_up=counts_up,
            signature_sha256=signature.content_hash(),
            command=["trainer", "export", "RUN", *options],
            run=RunOrigin(
                name=provenance.run_name,
                identity=provenance.run_identity,
                global_step=provenance.global_step,
                checkpoint=provenance.which,
                exported_weights="averages" if provenance.has_averages else "raw",
                backbone=provenance.backbone,
                weights=provenance.weights_name,
                precision=provenance.precision,
                config_sha256=hashlib.sha256(provenance.config_yaml.encode()).hexdigest(),
                num_train_examples=provenance.num_train_examples,
            ),
            dataset=DatasetOrigin(
                name=report.dataset_name,
                content_sha256=report.dataset_hash,
                split=report.split,
                num_images_compared=report.num_images,
            ),
            trainer_version=trainer.__version__,
            packages={name: importlib.metadata.version(name) for name in _PACKAGES},
        )

    def save(self, export_dir: pathlib.Path) -> None:
        atomic.write_text(export_dir / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, export_dir: pathlib.Path) -> "ExportProvenance":
        """Load the file. Raises ArtifactError if it is missing or malformed."""
        return read_export_file(cls, export_dir, FILE_NAME, schema_version=SCHEMA_VERSION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of the model; `evaluations` are those of the exported step, `config_yaml` is the whole recipe."""

    run_name: str
    run_identity: str
    global_step: int
    which: Which
    has_averages: bool = False
    backbone: str
    weights: str
    precision: str
    num_train_examples: int
    config_yaml: str
    evaluations: Sequence[Evaluation] = ()

    @property
    def weights_name(self) -> str:
        """The weights that training started from; a file without its directory, which differs between machines."""
        return self.weights.rpartition("/")[2]

    def describe(self) -> str:
        """Describe the reference of a parity report in words."""
        weights = ", averages of its weights" if self.has_averages else ""
        return f"run {self.run_name}, step {self.global_step} ({self.which} checkpoint{weights}), float32"
