"""Export a run with typed options; shared by `trainer export` and `trainer.export`."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from export.files.parity import ParityReport
from export.files.signature import Signature
from export.pipeline.options import ExportOptions
from trainer.run.checkpoint_store import find_model_file
from trainer.run.run_dir import RunDir
from trainer.system import tf_runtime
from trainer.system.names import check_model_name


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
    options.check()
    model_name = run.info().name if options.name is None else options.name
    check_model_name(model_name)
    find_model_file(run, options.which, options.weights)

    # On the CPU all runtimes compute in float32; a GPU would use TF32 for the reference.
    tf_runtime.configure(use_gpus=False)

    from export.pipeline.from_run import export_request_of
    from export.pipeline.make_export import check_target, make_export
    from export.versions.publish import next_version

    check_target(out, overwrite=options.overwrite)
    version = next_version(out, model_name) if options.version is None else options.version
    request = export_request_of(run, options, version=version)
    report = make_export(
        request, out, overwrite=options.overwrite, allow_failed=options.allow_failed, on_report=on_report
    )
    return ExportedRun(request.signature, request.version, report)
