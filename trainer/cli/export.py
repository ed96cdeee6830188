"""`trainer export`: make the files that are deployed."""

import pathlib
import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trainer.cli.options import MovedDataOption, RunArgument, TrustOption, WeightsOption, WhichOption
from trainer.console.output import JsonOption, note, print_answer, print_json

if TYPE_CHECKING:
    from export.files.parity import ParityReport

_NO_OUTPUTS = ""
_DEFAULT_ONNX_OPSET = 18
ALL_IMAGES = 0

OutOption = Annotated[pathlib.Path, typer.Option(help="The export: a directory that does not exist yet.")]
FormatsOption = Annotated[
    str,
    typer.Option(
        help="all, or some of saved_model, tflite-float32, tflite-float16, tflite-dynamic, tflite-int8, onnx, "
        "onnx-float16, onnx-int8, and by choice (not in all) saved_model-bfloat16, tflite-int8x16, onnx-int8x16, "
        "onnx-dynamic, separated by commas."
    ),
]
OutputsOption = Annotated[
    str, typer.Option(help="Further outputs of the SavedModel: logits, features, or both separated by a comma.")
]
CalibrateOption = Annotated[
    bool | None,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="Divide the logits by the temperature that trainer evaluate tuned.",
        show_default="where the run was evaluated with these weights",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(help="The model's name, in file names and in the URL that serves it.", show_default="of the run"),
]
VersionOption = Annotated[
    int | None,
    typer.Option(
        help="The SavedModel's version; TensorFlow Serving serves the highest.",
        show_default="1, or one more than the export at --out has; trainer publish takes the next free number",
    ),
]
ParityImagesOption = Annotated[
    int,
    typer.Option(min=0, help="Compare every artifact on this many validation images, evenly spread; 0: all."),
]
OnnxOpsetOption = Annotated[
    int, typer.Option(help="The operator set of the ONNX files, 14 to 18; onnx-int8x16 always has 21.")
]
AllowFailedOption = Annotated[
    bool,
    typer.Option(
        "--allow-failed", help="Keep artifacts that are over their budget too, marked as such wherever they are named."
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the export at --out, once the new one has passed the gate.")
]


def export(
    run: RunArgument,
    out: OutOption,
    formats: FormatsOption = "all",
    which: WhichOption = "best",
    weights: WeightsOption = "auto",
    calibrate: CalibrateOption = None,
    outputs: OutputsOption = _NO_OUTPUTS,
    name: NameOption = None,
    version: VersionOption = None,
    parity_images: ParityImagesOption = ALL_IMAGES,
    data: MovedDataOption = None,
    onnx_opset: OnnxOpsetOption = _DEFAULT_ONNX_OPSET,
    overwrite: OverwriteOption = False,
    allow_failed: AllowFailedOption = False,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Export a run to SavedModel, TFLite and ONNX, and compare every artifact with the trained model.

    Each artifact is run in its own runtime (TensorFlow, LiteRT, ONNX Runtime) on the validation images. If one answers
    differently, nothing is written and the exit status is 1. An int8 file that loses too much accuracy is first made
    again with other settings; the report says with which.
    """
    from export.pipeline.export_run import export_run
    from export.pipeline.options import ExportOptions
    from trainer.run.run_dir import RunDir

    exported = export_run(
        RunDir(run),
        out,
        ExportOptions(
            formats=formats,
            which=which,
            weights=weights,
            calibrate=calibrate,
            outputs=outputs,
            name=name,
            version=version,
            max_parity_images=limit_of(parity_images),
            data=data,
            onnx_opset=onnx_opset,
            overwrite=overwrite,
            allow_failed=allow_failed,
        ),
        on_report=lambda report: show_parity(report, json_),
    )
    note(exported.signature.describe_decisions())
    if not json_:
        path = shlex.quote(str(out))
        held = f" holds version {exported.version} of {exported.signature.model_name}"
        next_line = f"next: trainer verify {path}, trainer serve {path}"
        print_answer(Text.assemble((str(out), "bold"), f"{held}\n{next_line}"))


def show_parity(report: "ParityReport", json_: bool) -> None:
    if json_:
        print_json(report.answer())
        return
    from trainer.cli.export_tables import parity_table

    print_answer(parity_table(report))


def limit_of(parity_images: int) -> int | None:
    return None if parity_images == ALL_IMAGES else parity_images
