"""`trainer report`: one HTML file about a run."""

import pathlib
from typing import Annotated

import typer

from trainer.cli.options import EvaluatedSplitOption, MovedDataOption, RunArgument, TrustOption
from trainer.console.output import JsonOption, print_answer, print_json


def report(
    run: RunArgument,
    split: EvaluatedSplitOption = "test",
    out: Annotated[
        pathlib.Path | None, typer.Option(help="The HTML file to write.", show_default="RUN/report.html")
    ] = None,
    data: MovedDataOption = None,
    saliency: Annotated[
        int, typer.Option(min=0, max=24, help="How many images get a heat map of where the model looked; 0: none.")
    ] = 6,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Write one HTML file about a run: curves, confusion matrix, images, mistakes and settings.

    The file is self-contained: it can be mailed, archived and printed. Evaluate the split first: trainer evaluate RUN.
    """
    from trainer.run.run_dir import RunDir

    RunDir(run).info()  # refuse a wrong path before TensorFlow starts

    from trainer.system import tf_runtime

    # Reading images from TFRecords needs no GPU.
    tf_runtime.configure(use_gpus=False)

    from trainer.data.dataset.storage import parse_path
    from trainer.report.render import write_report

    path = write_report(
        RunDir(run),
        split=split,
        out=out,
        dataset_dir=parse_path(data) if data else None,
        num_saliency_images=saliency,
    )
    if json_:
        print_json({"report": str(path)})
    else:
        print_answer(str(path))
