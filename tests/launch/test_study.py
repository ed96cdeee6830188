"""`trainer study`: what it runs, in which order, and how it ends where one of its commands fails."""

import pathlib
import shutil

import pytest
from typer.testing import CliRunner, Result

from trainer.cli import study
from trainer.cli.app import app
from trainer.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run; a command with "fails" in it ends with status 75."""
    run: list[list[str]] = []

    def run_command(arguments: list[str], *, answers: bool) -> int:
        run.append(arguments)
        return 75 if any("fails" in argument for argument in arguments) else 0

    monkeypatch.setattr(study, "run_command", run_command)
    return run


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["study", "--recipe=frozen", "--recipe=staged", *arguments], catch_exceptions=False)


def test_other_options_go_to_each_launch_as_they_stand(commands: list[list[str]]) -> None:
    more = ["--device", "cpu", "--set", "train.epochs=5", "--set=train.seed=1", "--dry-run"]
    assert invoke("--data=photos", "--out=study", *more).exit_code == 0
    assert commands == [
        ["launch", f"--recipe={name}", "--data=photos", f"--run-dir=study/{name}", *more]
        for name in ("frozen", "staged")
    ]


def test_the_first_command_that_fails_ends_it_with_its_status(commands: list[list[str]]) -> None:
    assert invoke("--data=fails", "--out=study").exit_code == 75
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("more", "answer"),
    [("--recipe=frozen", "give two or more recipes, each once"), ("--recipe=froozen", "did you mean 'frozen'")],
)
def test_recipes_are_checked_before_anything_is_run(more: str, answer: str, commands: list[list[str]]) -> None:
    with pytest.raises(ConfigError, match=answer):
        invoke("--data=photos", "--out=study", more)
    assert commands == []


def test_a_command_is_this_very_program_whatever_lies_in_the_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trainer.py").write_text("raise SystemExit('not this one')")
    shutil.copy("trainer.py", "random.py")
    assert study.run_command(["backbones", "resnet50", "--json"], answers=True) == 0
    assert '"resnet50"' in capfd.readouterr().out
    assert study.run_command(["backbones", "resnet50"], answers=False) == 0
    assert capfd.readouterr().out == ""
    assert study.run_command(["compare", "nowhere"], answers=True) == 2
