"""Print for people on the console, and for programs as `--json` on standard output."""

import json
import re
import sys
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

# Text is printed as it is: "[red]" and ":smile:" may be names of classes, files or runs. What is bold or red is a
# `Text` with a style.
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
# Control characters, which a terminal would obey; a file name, or a label that a server answers, may hold some.
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")


def visible(text: str) -> str:
    """Return `text` with its control characters, except tabs and line ends, written out, as in "\\x1b"."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class _PlainConsole(Console):
    """A console that interprets nothing in the strings that it prints, alone or in a table."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


# Progress, notes and errors go to standard error, so that standard output holds the answer alone.
console = _PlainConsole(stderr=True, **_PLAIN)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON object on standard output.")]


def print_answer(answer: RenderableType) -> None:
    """Print the answer of a command (text or a table) on standard output, for a person."""
    # Paths must not be wrapped at the width of the terminal; tables must.
    _PlainConsole(**_PLAIN).print(answer, soft_wrap=isinstance(answer, str | Text))


def print_json(answer: Any) -> None:
    """Print the answer of a command on standard output as JSON, for a program."""
    sys.stdout.write(json.dumps(answer, indent=2, allow_nan=False) + "\n")


def note(message: str) -> None:
    """Print one line of plain text on standard error, for a person."""
    console.print(message, soft_wrap=True)
