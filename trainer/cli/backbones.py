"""`trainer backbones`: the networks that a classifier can start from."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from trainer.console.output import JsonOption, print_answer, print_json

if TYPE_CHECKING:
    from trainer.model.backbones.catalogue import BackboneFacts


def backbones(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILTER]", help="Show only names that contain this, such as mobilenet.", show_default="all"
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List the backbones: parameters, input size, multiply-adds per image, weights on this machine or not.

    [bold]model.backbone[/] also takes hub:PRESET (of keras-hub) and the path of a saved Keras model.
    """
    from trainer.errors import ModelError
    from trainer.model.backbones.catalogue import load_catalogue

    known = load_catalogue()
    found = [facts for facts in known if pattern is None or _plain(pattern) in _plain(facts.name)]
    if not found:
        raise ModelError(f"no backbone has {pattern!r} in its name; trainer backbones lists all {len(known)}")
    if json_:
        print_json([{**facts.model_dump(exclude_none=True), "weights": facts.weights} for facts in found])
    else:
        print_answer(_table(found))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _table(found: "list[BackboneFacts]") -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # all columns fit 80 characters
    table.add_column("backbone", no_wrap=True)
    for name in ("parameters", "input", "multiply-adds", "blocks"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    for facts in found:
        table.add_row(
            facts.name,
            f"{facts.num_parameters / 1e6:.1f} M",
            f"{facts.image_size_px} px",
            f"{facts.multiply_adds / 1e9:.2f} G",
            str(facts.num_blocks),
            facts.weights,
        )
    table.caption = "without a head, for one image of that size; pretrained weights on this machine"
    return table
