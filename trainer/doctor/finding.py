"""What a check comes to."""

import dataclasses
from typing import Literal

# ok: as it should be. absent: not here, which matters only to those who want it. warning: runs, worse than it could.
# problem: what was asked for, or anything at all, cannot run.
Verdict = Literal["ok", "absent", "warning", "problem"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at: `found` in a few words, and `fix`, what to do about it, where there is need."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, verdict="ok", found=found)


def absent(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, verdict="absent", found=found, fix=fix)


def warning(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, verdict="warning", found=found, fix=fix)


def problem(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, verdict="problem", found=found, fix=fix)
