"""Options that several commands share, each with one spelling and one help text."""

import pathlib
from typing import Annotated, Literal

import typer

from trainer.system.trust import set_trust

TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the code in a saved model that is the backbone: Lambda layers, and your own classes that Python can "
        "import. Only for files whose author you trust.",
        callback=set_trust,
    ),
]

RunArgument = Annotated[pathlib.Path, typer.Argument(help="The run directory of trainer launch.")]
ExportArgument = Annotated[pathlib.Path, typer.Argument(help="The directory that trainer export wrote.")]
MovedDataOption = Annotated[str | None, typer.Option(help="The dataset, if it has moved.", show_default="as trained")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one setting, such as train.epochs=5 or augment.preset=medium; repeatable.",
    ),
]
SplitName = Literal["train", "validation", "test"]
EvaluatedSplitOption = Annotated[SplitName, typer.Option(help="An evaluated split; see trainer evaluate.")]
WhichOption = Annotated[
    Literal["best", "last"], typer.Option(help="The checkpoint: the best on the validation split, or the last.")
]
WeightsOption = Annotated[
    Literal["auto", "raw", "averages"],
    typer.Option(help="raw, or the moving averages; auto: the averages where the run has them."),
]
DeviceName = Literal["auto", "gpu", "cpu"]
