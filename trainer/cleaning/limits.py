"""Ages and sizes as people type them, and the choice of what goes."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Final, Literal

import pydantic

from trainer.cleaning.entry import Entry
from trainer.errors import UsageError
from trainer.system.disk import format_size

DEFAULT_AGE: Final = "7d"
_SECS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([smhdw])", re.ASCII)
_SIZE = pydantic.TypeAdapter(pydantic.ByteSize)
# A writer marks what it has just created a moment later.
_MIN_SECS_UNFINISHED: Final = 60.0
# Where the file system keeps no marks, nothing younger is removed.
_MIN_SECS_UNCERTAIN: Final = 86_400.0

Action = Literal["remove", "keep", "removed", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of age and size: older entries are removed, and the least recently used beyond `keep_bytes`."""

    older_than_secs: float | None
    keep_bytes: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """The action for an entry, with its reason."""

    entry: Entry
    action: Action
    reason: str


def parse_limits(older_than: str | None, keep: str | None) -> Limits:
    """Return the limits of the options --older-than and --keep; by default, what was not used for a week goes.

    Raises:
        UsageError: one of them is no age or no size.
    """
    if older_than is None and keep is None:
        older_than = DEFAULT_AGE
    return Limits(
        older_than_secs=None if older_than is None else parse_age(older_than),
        keep_bytes=None if keep is None else parse_size(keep),
    )


def parse_age(text: str) -> float:
    """Return an age in seconds, for example of "7d" or "1.5h".

    Raises:
        UsageError: it is none.
    """
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"--older-than {text!r} is no age; give a number and s, m, h, d or w, as in --older-than {DEFAULT_AGE}"
        )
    return float(found[1]) * _SECS[found[2]]


def parse_size(text: str) -> int:
    """Return a size in bytes, for example of "20GB" or "1.5GiB".

    Raises:
        UsageError: it is none.
    """
    try:
        return int(_SIZE.validate_python(text.strip()))
    except (pydantic.ValidationError, OverflowError):
        raise UsageError(
            f"--keep {text!r} is no size; give a number and a unit, for example --keep 20GB or --keep 1.5GiB"
        ) from None


def format_age(secs: float) -> str:
    """Return an age in its largest whole unit, as in "3 d"."""
    unit = next((unit for unit in ("d", "h", "m") if secs >= _SECS[unit]), "s")
    return f"{max(secs, 0.0) // _SECS[unit]:.0f} {'min' if unit == 'm' else unit}"


def choose(entries: Sequence[Entry], limits: Limits, *, now_secs: float) -> list[Decision]:
    """Decide about each entry, in their order. Nothing that a rule keeps is removed, whatever the limits."""
    decisions = [_by_age(entry, limits, now_secs - entry.used_at_secs) for entry in entries]
    if limits.keep_bytes is None:
        return decisions
    total = sum(d.entry.num_bytes for d in decisions if d.action == "keep" and not d.entry.is_needed)
    by_use = sorted(range(len(decisions)), key=lambda i: entries[i].used_at_secs)
    for i in by_use:
        if total <= limits.keep_bytes:
            break
        if decisions[i].action == "keep" and not _why_kept(entries[i], now_secs - entries[i].used_at_secs):
            reason = f"least recently used, beyond --keep {format_size(limits.keep_bytes)}"
            decisions[i] = Decision(entry=entries[i], action="remove", reason=reason)
            total -= entries[i].num_bytes
    return decisions


def _by_age(entry: Entry, limits: Limits, age_secs: float) -> Decision:
    if why_kept := _why_kept(entry, age_secs):
        return Decision(entry=entry, action="keep", reason=why_kept)
    used = "written to" if entry.kind in ("unfinished", "checkpoint") else "used"
    if limits.older_than_secs is not None and age_secs >= limits.older_than_secs:
        return Decision(entry=entry, action="remove", reason=f"not {used} for {format_age(age_secs)}")
    limit = "" if limits.older_than_secs is None else f", less than {format_age(limits.older_than_secs)}"
    return Decision(entry=entry, action="keep", reason=f"{used} {format_age(age_secs)} ago{limit}")


def _why_kept(entry: Entry, age_secs: float) -> str:
    """Return what keeps an entry at any limits; "" if nothing does."""
    if entry.kept_because:
        return entry.kept_because
    if entry.kind == "unfinished" and age_secs < _MIN_SECS_UNFINISHED:
        return "written to in the last minute"
    if not entry.is_certain and age_secs < _MIN_SECS_UNCERTAIN:
        return "used in the last day; this file system has no locks that tell whether it still is"
    return ""
