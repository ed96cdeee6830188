"""What every command prints with: people read the console, programs read `--json` on standard output."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

# Progress, notes and errors go to standard error, so that standard output holds the answer alone.
console = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object on standard output.")]


def print_answer(answer: RenderableType) -> None:
    """Prints the answer of a command (text with rich markup, or a table) for a person, on standard output."""
    # A path must not be broken at the width of the terminal; a table must.
    Console(highlight=False).print(answer, soft_wrap=isinstance(answer, str))


def print_json(answer: Any) -> None:
    """Prints the answer of a command for a program to read."""
    sys.stdout.write(json.dumps(answer, indent=2, allow_nan=False) + "\n")


def note(message: str) -> None:
    """Tells a person what is going on; plain text, one line, on standard error."""
    console.print(message, markup=False, soft_wrap=True)
