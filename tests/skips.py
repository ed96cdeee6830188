"""A pytest plugin: with --only-allowed-skips, a skipped test that tests/allowed_skips.txt does not name fails the run.

A test that is skipped guards nothing, and nobody reads the list of skips of a green run.
"""

import pathlib
from typing import Any, Final

import pytest

ALLOWED_SKIPS: Final = pathlib.Path(__file__).with_name("allowed_skips.txt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-allowed-skips",
        action="store_true",
        help=f"fail if a test is skipped that {ALLOWED_SKIPS.name} does not name",
    )


def read_allowed_skips(path: pathlib.Path = ALLOWED_SKIPS) -> dict[str, str]:
    """Return the reason of each allowed skip, by the start of the test's name."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {name: reason.strip() for name, _, reason in (line.partition(" ") for line in lines)}


def find_forbidden_skips(skipped: list[Any], allowed: dict[str, str]) -> list[str]:
    """Return a line for each report in `skipped` that no name in `allowed` begins.

    Args:
        skipped: reports of tests, or of modules that were skipped as a whole.
    """
    return [
        f"{report.nodeid}: {_reason(report)}"
        for report in skipped
        if not any(report.nodeid.startswith(name) for name in allowed)
    ]


def _reason(report: Any) -> str:
    # A skip is reported as (file, line, reason).
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _forbidden_of(config: pytest.Config) -> list[str]:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    # A process of pytest-xdist reports to the one that started it, which decides.
    if reporter is None or hasattr(config, "workerinput") or not config.getoption("--only-allowed-skips"):
        return []
    return find_forbidden_skips(reporter.stats.get("skipped", []), read_allowed_skips())


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _forbidden_of(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if forbidden := _forbidden_of(config):
        terminalreporter.section(f"{len(forbidden)} skipped that must not be", red=True)
        for line in forbidden:
            terminalreporter.line(line)
        terminalreporter.line(
            f"install what they need (scripts/system-packages tests), or name them in {ALLOWED_SKIPS}"
        )
