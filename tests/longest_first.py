"""A pytest plugin: processes of pytest-xdist take the files that last longest first, so that they end together.

`seconds_per_file.txt` says how long each lasted; `PYTEST_ADDOPTS=--write-seconds make test` writes it anew. The plugin
goes with `--no-loadscope-reorder`, without which pytest-xdist has an order of its own.
"""

import collections
import pathlib
from typing import Any, Final

import pytest

TABLE: Final = pathlib.Path(__file__).with_name("seconds_per_file.txt")
_IS_TOLD_FROM_SECS: Final = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-seconds", action="store_true", help=f"write {TABLE.name} from this run")


def read_seconds() -> dict[str, float]:
    """Return the seconds of each file that lasted a second or more, by its path."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {path: float(seconds) for seconds, path in (line.split() for line in lines)}


def _path_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        seconds = read_seconds()
        items.sort(key=lambda item: -seconds.get(_path_of(item.nodeid), 0.0))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--write-seconds"):
        return
    seconds: collections.Counter[str] = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            seconds[_path_of(getattr(report, "nodeid", ""))] += getattr(report, "duration", 0.0)
    lines = [f"{count:.1f} {path}\n" for path, count in seconds.most_common() if count >= _IS_TOLD_FROM_SECS]
    TABLE.write_text("".join(lines), encoding="utf-8")
