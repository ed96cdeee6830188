"""The result of a check, and the report of all of them: a JSON format that this module owns."""

import json
import pathlib
from typing import Any, Final, Literal

import pydantic

from trainer.system import atomic

SCHEMA_VERSION: Final = 1
REPORT_FILE: Final = "acceptance.json"

Outcome = Literal["passed", "failed", "not run"]


class Result(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The outcome of a check, with its expectation and its measured figures.

    Attributes:
        reason: why it failed or was not run; empty if it passed.
        figures: the measured values behind `seen`, by name.
    """

    name: str
    expected: str
    seen: str = ""
    outcome: Outcome
    reason: str = ""
    secs: float = 0.0
    figures: dict[str, Any] = {}


class Report(pydantic.BaseModel, extra="forbid"):
    """The contents of `acceptance.json`, which is written after each check.

    Attributes:
        is_accepted: every check has ended and none of them failed; those that could not be run say why.
        is_complete: False while checks are running, and after an interruption.
        environment: see `trainer.system.environment.collect`; empty until the first check has ended.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    is_accepted: bool = False
    is_complete: bool = False
    size: Literal["full", "small"]
    device: Literal["gpu", "cpu", "unknown"] = "unknown"
    num_replicas: int = 0
    secs: float = 0.0
    checks: list[Result] = []
    environment: dict[str, Any] = {}

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [result.name for result in self.checks if result.outcome == "failed"]

    def save(self, directory: pathlib.Path) -> None:
        """Write the report to `directory`."""
        self.is_accepted = self.is_complete and not self.failed
        atomic.write_json(directory / REPORT_FILE, self.model_dump(mode="json"))


def passed(name: str, expected: str, seen: str, **figures: Any) -> Result:
    """Return the result of a check that saw what it expected."""
    return Result(name=name, expected=expected, seen=seen, outcome="passed", figures=figures)


def failed(name: str, expected: str, seen: str, reason: str, **figures: Any) -> Result:
    """Return the result of a check that saw something else; `reason` says what to look at."""
    return Result(name=name, expected=expected, seen=seen, outcome="failed", reason=reason, figures=figures)


def not_run(name: str, expected: str, reason: str) -> Result:
    """Return the result of a check that has no answer on this machine."""
    return Result(name=name, expected=expected, outcome="not run", reason=reason)


def read_results(path: pathlib.Path) -> list[Result]:
    """Read the results that the process of a check has written."""
    return [Result.model_validate(content) for content in json.loads(path.read_text(encoding="utf-8"))]


def write_results(path: pathlib.Path, results: list[Result]) -> None:
    """Write the results of a check to `path`."""
    atomic.write_json(path, [result.model_dump(mode="json") for result in results])
