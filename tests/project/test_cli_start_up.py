"""`trainer --help` is as quick as an empty Typer application's, and its names do not change by accident."""

import json
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest
import typer

import trainer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
OWN_PACKAGES = {"trainer", "export", "serving"}
COMMANDS = {
    "prepare",
    "launch",
    "evaluate",
    "report",
    "compare",
    "study",
    "export",
    "verify",
    "predict",
    "publish",
    "rollback",
    "serve",
    "manifests",
    "backbones",
    "doctor",
    "clean",
    "bench",
}

OURS = "from trainer.cli.app import main"
EMPTY = """
import typer
main = typer.Typer(rich_markup_mode="rich")
main.command()(lambda: None)
"""
# Runs `--help` of `main` and, as the last line, says which top-level modules that has loaded.
LIST_MODULES = """
import json, sys
sys.argv = ["trainer", "--help"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )


def modules_of_help(application: str) -> set[str]:
    ended = run_python("-c", application + LIST_MODULES)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


def loaded_without_need(application: str) -> set[str]:
    """Modules from outside Python and the project that an empty application does without."""
    return modules_of_help(application) - modules_of_help(EMPTY) - OWN_PACKAGES - set(sys.stdlib_module_names)


def run_trainer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-c", f"{OURS}; main()", *arguments)


@pytest.fixture(scope="module")
def commands():
    from trainer.cli.app import app

    return typer.main.get_command(app).commands


def test_help_loads_nothing_that_an_empty_application_does_without():
    assert loaded_without_need(OURS) == set()


@pytest.mark.parametrize("heavy", ["numpy", "pydantic", "yaml"])
def test_a_planted_heavy_import_is_found(heavy):
    assert heavy in loaded_without_need(f"{OURS}\nimport {heavy}\n")


def test_the_public_commands_are_these(commands):
    assert set(commands) == COMMANDS


def test_every_command_and_every_option_is_explained(commands):
    silent = [name for name, command in commands.items() if not (command.help or "").strip()]
    silent += [
        f"{name} {parameter.name}"
        for name, command in commands.items()
        for parameter in command.params
        if not (getattr(parameter, "help", None) or "").strip()
    ]
    assert silent == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_every_command_ends_well(command):
    ended = run_trainer(command, "--help")
    assert ended.returncode == 0, ended.stderr
    assert f"trainer {command}" in ended.stdout


def test_the_version_is_that_of_the_package_and_of_the_project():
    ended = run_trainer("--version")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"trainer {trainer.__version__}\n"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == trainer.__version__


def test_a_shell_is_told_how_to_complete():
    program = f"{OURS}; main()"
    asked = {"_TRAINER_COMPLETE": "complete_bash", "COMP_WORDS": "trainer la", "COMP_CWORD": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert ended.stdout.split() == ["launch"], ended.stderr
    assert "--install-completion" in run_trainer("--help").stdout


def test_a_misspelt_command_is_wrong_usage_and_names_the_nearest():
    ended = run_trainer("launhc")
    assert ended.returncode == 2
    assert "launhc" in ended.stderr
    assert "launch" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_misspelt_option_is_wrong_usage_and_names_the_nearest():
    ended = run_trainer("launch", "--confg", "x")
    assert ended.returncode == 2
    assert "--confg" in ended.stderr
    assert "--config" in ended.stderr
    assert "Traceback" not in ended.stderr
