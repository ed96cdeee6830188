"""What is printed is shown as it is: names of classes, files and runs are no markup and no codes of emoji."""

import pathlib
import re
import sys

import pytest
from rich.table import Table
from rich.text import Text

import trainer
from export.prediction.predictions import ClassProbability, ImagePrediction
from trainer.cli import app
from trainer.console.output import console, note, print_answer
from trainer.console.progress import task_progress

PROJECT = pathlib.Path(trainer.__file__).parents[1]
NAME = "[red]:smile:[/red]"


def test_names_that_look_like_markup_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(NAME, title=NAME, caption=NAME)
    table.add_row(NAME)
    for answer in (NAME, Text(NAME), table):
        print_answer(answer)
        assert capsys.readouterr().out.count(NAME) == (4 if answer is table else 1)
    note(NAME)
    with task_progress(NAME, 1, console=console) as progress:
        progress.advance()
    assert capsys.readouterr().err.count(NAME) == 2


def test_an_error_about_such_a_name_tells_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer", "backbones", NAME])
    with pytest.raises(SystemExit):
        app.main()
    assert f"error: no backbone has '{NAME}' in its name" in capsys.readouterr().err


def test_a_terminal_is_given_no_orders_by_a_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = "\x1b[31mred\x07\x9b2J"
    table = Table("", orders)
    table.add_row(orders)
    print_answer(table)
    note(orders)
    monkeypatch.setattr(sys, "argv", ["trainer", "backbones", orders])
    with pytest.raises(SystemExit):
        app.main()
    said = "".join(capsys.readouterr())
    assert said.count("\\x1b[31mred\\x07\\x9b2J") >= 3 and "\x1b" not in said and "\x9b" not in said


def test_a_prediction_of_such_a_class_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from trainer.cli.export_tables import prediction_table

    chosen = ClassProbability(class_id=0, label=NAME, probability=1.0)
    print_answer(prediction_table([ImagePrediction(image=NAME, classes=[chosen])]))
    assert capsys.readouterr().out.count(NAME) == 2


def test_nothing_prints_past_the_one_console_that_leaves_text_alone() -> None:
    """Another console would take markup again, and text with the marks of markup would show them."""
    for package in ("trainer", "export", "serving"):
        for path in (PROJECT / package).rglob("*.py"):
            text = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
            if path.name != "output.py":
                assert "rich.markup" not in text and not re.search(r"\[/?(bold|red|green|dim|/\])", text), path
                assert not re.search(r"\bConsole\((?!quiet=True)", text), path
