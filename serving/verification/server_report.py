"""The answer of `trainer verify --server`: what was checked on a server, and what was seen."""

from typing import Any, Literal

import pydantic

from export.files.read_file import StrictModel
from trainer.errors import ParityError


class ServerCheck(StrictModel):
    """One check.

    Attributes:
        name: what was checked, with the API, such as "golden images, gRPC images".
        seen: the figure or fact that was seen.
        failure: what is wrong and what to do, or null.
        figures: numbers of the check, in the units of their names; null for one that is infinite or not a number.
    """

    name: str
    seen: str
    failure: str | None = None
    figures: dict[str, float | None] = pydantic.Field(default_factory=dict)


class ServerReport(StrictModel):
    """All checks of one server."""

    schema_version: Literal[1] = 1
    server: str
    grpc: str | None
    model: str
    version: int
    checks: list[ServerCheck]

    @property
    def passed(self) -> bool:
        return not any(check.failure for check in self.checks)

    def answer(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.model_dump(mode="json"), "passed": self.passed}

    def raise_on_failure(self) -> None:
        """Raise ParityError naming every check that failed."""
        failures = [f"{check.name}: {check.failure}" for check in self.checks if check.failure]
        if failures:
            raise ParityError(f"{self.server} must not get traffic: {'; '.join(failures)}")
