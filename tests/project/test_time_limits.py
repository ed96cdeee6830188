"""A limit of time in a test is there to end what hangs: a busy machine must never reach it.

Where the limit itself is tested, the line says so with the comment that is `EXCEPTION`.
"""

import ast
import pathlib
import tomllib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MIN_SECS = 600
EXCEPTION = "# this limit is tested"


def short_limits(source: str) -> list[int]:
    """Return the lines of calls with a keyword `timeout` or `start_timeout_secs` of less than MIN_SECS."""
    lines = source.splitlines()
    found = [
        keyword.value.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ("timeout", "start_timeout_secs")
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, int | float)
        and keyword.value.value < MIN_SECS
    ]
    return [line for line in found if EXCEPTION not in lines[line - 1]]


def test_no_test_has_a_limit_that_a_busy_machine_reaches() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in sorted((REPOSITORY / "tests").rglob("*.py"))
        for line in short_limits(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"limits below {MIN_SECS} s: {', '.join(found)}"


def test_pytest_itself_waits_longer_than_any_subprocess() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["pytest"]["ini_options"]["timeout"] == 3 * MIN_SECS


@pytest.mark.parametrize("call", ["run(x, timeout=120)", "p.communicate(timeout=5.0)", "f(start_timeout_secs=60)"])
def test_a_planted_short_limit_is_found(call: str) -> None:
    assert short_limits(f"x = 1\n{call}\n") == [2]
    assert short_limits(f"x = 1\n{call}  {EXCEPTION}\n") == []
    assert short_limits("run(x, timeout=600)\nrun(x)\nrun(x, timeout=None)\n") == []
