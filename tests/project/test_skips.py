"""A skipped test fails the run unless it stands in the list, and the list names tests that there are."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.skips import ALLOWED_SKIPS, read_allowed_skips

REPOSITORY = ALLOWED_SKIPS.parents[1]
SKIPPING = """
import pytest

@pytest.mark.skip(reason="no such machine")
def test_skipped(): ...

def test_passed(): ...
"""


def run_pytest(folder: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs a test file that skips one of its two tests, in two processes as `make test` does."""
    (folder / "test_some.py").write_text(SKIPPING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", "-p", "no:cacheprovider", "-n", "2", *options]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}"}
    # It holds options of plug-ins that this process does not load.
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_a_skip_that_is_not_in_the_list_fails_the_run_and_is_named(tmp_path: pathlib.Path) -> None:
    ended = run_pytest(tmp_path, "--only-allowed-skips")
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout + ended.stderr
    assert "test_some.py::test_skipped: Skipped: no such machine" in ended.stdout
    assert "1 skipped that must not be" in ended.stdout


def test_without_the_option_a_skip_is_a_skip(tmp_path: pathlib.Path) -> None:
    assert run_pytest(tmp_path).returncode == pytest.ExitCode.OK


def test_each_allowed_skip_names_a_test_and_gives_a_reason() -> None:
    allowed = read_allowed_skips()
    assert allowed
    for name, reason in allowed.items():
        file, _, test = name.partition("::")
        assert f"def {test}(" in (REPOSITORY / file).read_text(encoding="utf-8"), name
        assert len(reason.split()) > 3, f"{name} needs a reason"
