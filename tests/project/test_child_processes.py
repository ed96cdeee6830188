"""How this project starts Python processes: nothing in the directory where a user types a command is run by them."""

import ast
import pathlib
import subprocess
import tomllib

import pytest

from trainer.system.child_python import python_command
from trainer.system.run_module import PACKAGES

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CODE = ("trainer", "export", "serving", "scripts", "benchmarks")
GUARD = "trainer.distribute.launchers.guard"


@pytest.fixture
def crowded(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory in which a user's own files have the names of our packages, and of modules that these need."""
    for name in (*PACKAGES, "random", "json", "numpy", "psutil", "tensorflow", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"print('the {name}.py of the user')\nraise SystemExit(3)\n")
    return tmp_path


def run(command: list[str], place: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Without installation, and without any variable of the test's own: PATH is what a loader needs.
    return subprocess.run(command, cwd=place, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        (GUARD, ["127.0.0.1"], '"report": "ready"'),
        ("trainer", ["--help"], "verified and served model"),
    ],
)
def test_a_child_imports_this_installation_and_nothing_of_the_users_directory(
    module: str, arguments: list[str], expected: str, crowded: pathlib.Path
) -> None:
    ended = run(python_command(module, *arguments), crowded)
    assert "of the user" not in ended.stdout
    assert expected in ended.stdout + ended.stderr


def test_the_python_path_that_a_user_gives_still_counts(tmp_path: pathlib.Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text("print('found by PYTHONPATH')\n")
    ended = run(python_command("trainer", "--help"), tmp_path, PYTHONPATH=str(tmp_path / "path"))
    assert "found by PYTHONPATH" in ended.stdout


def test_the_packages_that_a_child_finds_are_those_of_the_wheel() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert list(PACKAGES) == project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def find_unsafe_starts(source: str) -> list[int]:
    """Lines on which a command begins with this Python and a module or a program text, without -P."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.List | ast.Tuple)
        for first, second in zip(node.elts, node.elts[1:], strict=False)
        if ast.unparse(first) == "sys.executable" and isinstance(second, ast.Constant) and second.value in ("-m", "-c")
    ]


def test_every_start_of_python_leaves_out_the_working_directory() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for package in CODE
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for line in find_unsafe_starts(path.read_text())
    ]
    assert found == [], "use trainer.system.child_python.python_command"
    assert find_unsafe_starts("import sys\nrun([sys.executable, '-m', 'trainer'])") == [2]
