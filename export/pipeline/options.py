"""The options of an export, checked without TensorFlow."""

import dataclasses

from export.files.formats import DEFAULT_ONNX_OPSET, Format, check_num_images, check_onnx_opset, parse_formats
from export.files.signature import parse_outputs
from trainer.run.checkpoint_store import Weights, Which
from trainer.system.names import check_model_name, check_version


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of an export.

    Args:
        formats: "all", or format names separated by commas; see `export.files.formats`.
        which: the checkpoint: "best" on validation, or "last".
        weights: "raw", "averages" (moving averages), or "auto": averages if the run has them.
        calibrate: apply the temperature of the validation split; None: if the run was evaluated.
        outputs: additional outputs of the SavedModel, "logits", "features" or both, separated by commas.
        name: the model's name; None: the run's.
        version: of the SavedModel, 1 to 2^63-1; None: one above that of the same model at the target, or 1.
        max_parity_images: number of validation images to compare every artifact on; None: all.
        data: the dataset, if it has moved.
        onnx_opset: the operator set of the ONNX files, 14 to 18.
        overwrite: replace an export at the target.
        allow_failed: publish artifacts over their budget too, marked as such.
    """

    formats: str = "all"
    which: Which = "best"
    weights: Weights = "auto"
    calibrate: bool | None = None
    outputs: str = ""
    name: str | None = None
    version: int | None = None
    max_parity_images: int | None = None
    data: str | None = None
    onnx_opset: int = DEFAULT_ONNX_OPSET
    overwrite: bool = False
    allow_failed: bool = False

    def check(self) -> None:
        """Raise UsageError for an invalid option."""
        self.parsed_outputs()
        check_num_images(self.max_parity_images)
        check_onnx_opset(self.onnx_opset)
        if self.version is not None:
            check_version(self.version)
        if self.name is not None:
            check_model_name(self.name)

    def parsed_formats(self) -> list[Format]:
        """Return the formats. Raises UsageError."""
        return parse_formats(self.formats)

    def parsed_outputs(self) -> list[str]:
        """Return the additional outputs. Raises UsageError."""
        return parse_outputs(self.outputs, has_saved_model=any(f.kind == "saved_model" for f in self.parsed_formats()))
