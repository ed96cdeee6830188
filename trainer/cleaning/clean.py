"""Choose what goes, and remove it: each entry only while its place is held, and only if it is still what was chosen."""

import dataclasses
import itertools
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence

from trainer.cleaning.entry import Entry, Place, RefusedError
from trainer.cleaning.find import find_places
from trainer.cleaning.limits import Decision, Limits, choose
from trainer.system import atomic, in_use


def clean(
    paths: Sequence[pathlib.Path], limits: Limits, *, removes: bool, note: Callable[[str], None]
) -> list[Decision]:
    """Decide about everything at, below and beside `paths`, and remove what goes if `removes`.

    Args:
        paths: see `find_places`.
        limits: what goes.
        removes: False: only decide.
        note: told about folders that cannot be read, and who is being waited for.

    Raises:
        UsageError: there is nothing at a path.
    """
    found = [(place, entry) for place in find_places(paths, note) for entry in place.find()]
    decisions = choose([entry for _, entry in found], limits, now_secs=time.time())
    if not removes:
        return decisions
    by_place = itertools.groupby(zip(found, decisions, strict=True), key=lambda pair: pair[0][0])
    return [done for place, group in by_place for done in _remove_from(place, [decision for _, decision in group])]


def _remove_from(place: Place, decisions: list[Decision]) -> list[Decision]:
    """Remove what goes from one place; return the decisions with what became of them."""
    if all(decision.action == "keep" for decision in decisions):
        return decisions
    try:
        with place.hold():
            there = {entry.path: entry for entry in place.find_again()}
            return [_remove(decision, there.get(decision.entry.path)) for decision in decisions]
    except RefusedError as e:
        why, action = str(e), "keep"
    except OSError as e:
        why, action = f"could not be removed ({e.strerror or e})", "failed"
    return [
        dataclasses.replace(decision, action=action, reason=why) if decision.action == "remove" else decision  # type: ignore[arg-type]
        for decision in decisions
    ]


def _remove(decision: Decision, now: Entry | None) -> Decision:
    """Remove an entry that goes, unless it has changed; `now` is what the place has at its path."""
    if decision.action == "keep":
        return decision
    if now is None:
        return dataclasses.replace(decision, action="removed", reason="another command has removed it")
    if now.kept_because:
        return dataclasses.replace(decision, action="keep", reason=now.kept_because)
    if now.used_at_secs > decision.entry.used_at_secs:
        return dataclasses.replace(decision, action="keep", reason="used since it was found")
    try:
        if now.mark is None:
            _delete(now.path)
        else:
            with in_use.hold_alone(now.mark) as use:
                if use == "used":
                    return dataclasses.replace(decision, action="keep", reason="in use by a running process")
                _delete(now.path)
    except OSError as e:
        return dataclasses.replace(decision, action="failed", reason=f"could not be removed ({e.strerror or e})")
    return dataclasses.replace(decision, action="removed")


def _delete(path: pathlib.Path) -> None:
    """Remove a file or folder; a kill on the way leaves nothing under a name that is read."""
    if not path.is_dir():
        path.unlink()
        return
    leaving = path
    if not path.name.startswith(atomic.TEMPORARY_PREFIX):
        leaving = atomic.temporary_name(path)
        os.rename(path, leaving)
    shutil.rmtree(leaving)
