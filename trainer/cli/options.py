"""Options that several commands share, so that each has one spelling and one help text."""

from enum import StrEnum
from typing import Annotated

import typer

from trainer.system.trust import set_trust

TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the code in a saved model that is the backbone (Lambda layers, classes of your own that Python can "
        "import). Only for files whose author you know.",
        callback=set_trust,
    ),
]


class Which(StrEnum):
    best = "best"
    last = "last"


WhichOption = Annotated[Which, typer.Option(help="The checkpoint: best on validation, or last.")]


class Weights(StrEnum):
    auto = "auto"
    raw = "raw"
    averages = "averages"
