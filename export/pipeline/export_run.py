"""Export a run with typed options; shared by `trainer export` and `trainer.export`."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from export.files.formats import DEFAULT_ONNX_OPSET, check_num_images, check_onnx_opset, parse_formats
from export.files.parity import ParityReport
from export.files.signature import Signature, parse_outputs
from trainer.run.checkpoint import Weights, Which, find_model_file
from trainer.run.run_dir import RunDir
from trainer.system import tf_runtime
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


class ExportedRun(NamedTuple):
    """The published signature and version, and how the artifacts compare with the model."""

    signature: Signature
    version: int
    report: ParityReport


def export_run(
    run: RunDir,
    out: pathlib.Path,
    options: ExportOptions,
    *,
    on_report: Callable[[ParityReport], None] = lambda _: None,
) -> ExportedRun:
    """Export a checkpoint of `run` to `out`, whole and within its budgets or not at all; on the CPU.

    Invalid options are reported before TensorFlow is imported.

    Args:
        run: the run to export.
        out: the directory to write.
        options: the options of the export.
        on_report: called with the gate's report before it is judged.

    Raises:
        UsageError: an option is wrong, the run has no such checkpoint, or `out` is taken.
        ExportError: a format cannot represent the model.
        ParityError: an artifact does not answer like the model; nothing was published.
    """
    formats = parse_formats(options.formats)
    outputs = parse_outputs(options.outputs, has_saved_model=any(f.kind == "saved_model" for f in formats))
    check_num_images(options.max_parity_images)
    check_onnx_opset(options.onnx_opset)
    if options.version is not None:
        check_version(options.version)
    model_name = run.info().name if options.name is None else options.name
    check_model_name(model_name)
    find_model_file(run, options.which, options.weights)

    # On the CPU all runtimes compute in float32; a GPU would use TF32 for the reference.
    tf_runtime.configure(use_gpus=False)

    from export.pipeline.from_run import export_request_of
    from export.pipeline.make_export import check_target, make_export
    from export.versions.publish import next_version
    from trainer.data.dataset.storage import parse_path

    check_target(out, overwrite=options.overwrite)
    request = export_request_of(
        run,
        which=options.which,
        weights=options.weights,
        calibrate=options.calibrate,
        outputs=outputs,
        formats=formats,
        model_name=model_name,
        version=next_version(out, model_name) if options.version is None else options.version,
        counts_up=options.version is None,
        dataset_dir=parse_path(options.data) if options.data else None,
        max_parity_images=options.max_parity_images,
        onnx_opset=options.onnx_opset,
    )
    report = make_export(
        request, out, overwrite=options.overwrite, allow_failed=options.allow_failed, on_report=on_report
    )
    return ExportedRun(request.signature, request.version, report)
