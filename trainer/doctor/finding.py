"""The result of a check, and the advice that follows from all of them."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

# ok: works. absent: not here, and needed only by those who want it. warning: works, but worse than it could.
# problem: training, or something that was asked for, cannot run.
Verdict = Literal["ok", "absent", "warning", "problem"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict of one check: `found` in a few words, and `fix`, what to do about it; empty if all is well."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that needs no fix."""
    return Finding(check=check, verdict="ok", found=found)


def absent(check: str, found: str, fix: str) -> Finding:
    """Return a finding about an optional part that is not here."""
    return Finding(check=check, verdict="absent", found=found, fix=fix)


def warning(check: str, found: str, fix: str) -> Finding:
    """Return a finding about a part that works worse than it could."""
    return Finding(check=check, verdict="warning", found=found, fix=fix)


def problem(check: str, found: str, fix: str) -> Finding:
    """Return a finding about a part that cannot run."""
    return Finding(check=check, verdict="problem", found=found, fix=fix)


def first_step(findings: Sequence[Finding]) -> str:
    """Return the one thing to do first: the fix of the first problem, otherwise of the first warning, or nothing."""
    for verdict in ("problem", "warning"):
        for finding in findings:
            if finding.verdict == verdict:
                return f"{finding.fix} ({finding.check}: {finding.found})"
    return "nothing; this machine can train"
