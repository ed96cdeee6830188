"""Export a run with typed options: what `trainer export` and `trainer.export` share."""

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
    """What decides an export besides its run.

    Args:
        formats: "all", or some formats, separated by commas; see `export.files.formats`.
        which: the checkpoint, "best" on validation or "last".
        weights: "raw", "averages" (the moving averages), or "auto": the averages where the run has them.
        calibrate: whether the temperature of the validation split is applied; None: where the run was evaluated.
        outputs: more outputs of the SavedModel, "logits", "features" or both, separated by commas.
        name: the model's name; None: the run's.
        version: of the SavedModel, 1 to 2^63-1; None: the next after that of the same model at the target, or 1.
        max_parity_images: how many validation images every artifact is compared on; None: all.
        data: the dataset, where it has moved.
        onnx_opset: the operator set of the ONNX files, 14 to 18.
        overwrite: whether an export at the target is replaced.
        allow_failed: whether artifacts over their budget are published too, each marked as such.
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
    """The signature and the version that were published, and how the artifacts compare with the model."""

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

    What is wrong with the options is found before TensorFlow is imported.

    Args:
        on_report: shown the report of the gate before it is judged.

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

    # On the CPU, where all runtimes compute in plain float32; a GPU would bring TF32 into the reference.
    tf_runtime.configure(use_gpus=False)

    from export.pipeline.from_run import publication_of_run
    from export.pipeline.make_export import check_target, publish
    from export.versions.publish import next_version
    from trainer.data.dataset.storage import parse_path

    check_target(out, overwrite=options.overwrite)
    publication = publication_of_run(
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
    report = publish(
        publication, out, overwrite=options.overwrite, allow_failed=options.allow_failed, on_report=on_report
    )
    return ExportedRun(publication.signature, publication.version, report)
