"""The rules of a run directory: its newest whole checkpoint and its best one stay, whatever their age and size.

| kind | what | last used |
| --- | --- | --- |
| checkpoint | one that is neither the newest whole one nor the best | when it was written |
| checkpoint | `damaged-step-00001200`, which a start has set aside | when it was written |
| unfinished | temporary files anywhere in the run | last write |

A run that a command trains is left alone as a whole. While something is removed, the run is held as by `launch`.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

from trainer.cleaning.entry import Entry, RefusedError, measure
from trainer.cleaning.rules import find_temporaries
from trainer.errors import RunError, TrainerError
from trainer.run import claim
from trainer.run.checkpoint import DamagedError, check_checkpoint
from trainer.run.checkpoint_store import DAMAGED_PREFIX, CheckpointStore
from trainer.run.run_dir import RunDir
from trainer.system import lease, lock

# What a lease is renamed to while it is taken from a host that is gone.
_OLD_LEASE = re.compile(rf"{re.escape(claim.LEASE_NAME)}-[0-9a-f]{{8}}")


@dataclasses.dataclass(frozen=True)
class RunPlace:
    """A run directory. `note` is told who is being waited for."""

    path: pathlib.Path
    note: Callable[[str], None] = dataclasses.field(compare=False)

    def find(self) -> Iterator[Entry]:
        if not (held := self._find_holder()):
            yield from self.find_again()
            return
        # It is not looked at closely: checkpoints come and go.
        for entry in (*self._list_checkpoints({}), *self._find_unfinished()):
            yield dataclasses.replace(entry, kept_because=held)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        try:
            with claim.hold_run(RunDir(self.path), claim.CLEANING, note=self.note):
                yield
        except RunError as e:
            raise RefusedError(self._find_holder() or str(e)) from None

    def find_again(self) -> Iterator[Entry]:
        yield from self._find_checkpoints()
        yield from self._find_unfinished()

    def _find_holder(self) -> str:
        """Say who trains in the run; return "" if nobody does."""
        lock_file, lease_file = self.path / claim.LOCK_NAME, self.path / claim.LEASE_NAME
        try:
            if lock.is_held(lock_file):
                return f"being trained by {lock.find_holder(lock_file) or 'another command'}"
        except OSError as e:
            # The lease alone keeps others out, on a file system without locks.
            if not lock.has_no_locks(e):
                return f"it cannot be known whether it is being trained ({e.strerror})"
        try:
            holder = lease.find_holder(lease_file, on_wait=self._tell_watch)
        except OSError as e:
            return f"it cannot be known whether it is being trained ({e.strerror})"
        return f"being trained by {holder}" if holder else ""

    def _tell_watch(self, holder: lock.Holder) -> None:
        self.note(claim.describe_watch(RunDir(self.path), holder))

    def _find_checkpoints(self) -> Iterator[Entry]:
        run = RunDir(self.path)
        try:
            store = CheckpointStore.of_run(run, run.config().checkpoint)
            reasons = _find_needed(store)
        except (TrainerError, OSError) as e:
            steps = CheckpointStore(run.checkpoints_dir, keep=1, best_metric="accuracy").steps()
            reasons = dict.fromkeys(steps, f"it cannot be known which checkpoints the run needs ({e})")
        yield from self._list_checkpoints(reasons)

    def _list_checkpoints(self, reasons: Mapping[int, str]) -> Iterator[Entry]:
        """Yield all checkpoints, with the reasons to keep some of them by step."""
        store = CheckpointStore(RunDir(self.path).checkpoints_dir, keep=1, best_metric="accuracy")
        for step in store.steps():
            yield _entry_of(store.path(step), f"checkpoint of step {step}", reasons.get(step, ""))
        for path in sorted(store.directory.glob(f"{DAMAGED_PREFIX}*")):
            yield _entry_of(path, "a damaged checkpoint, set aside", "")

    def _find_unfinished(self) -> Iterator[Entry]:
        for place in find_temporaries(self.path):
            yield from place.find()
        for path in sorted(self.path.glob(f"{claim.LEASE_NAME}-*")):
            if _OLD_LEASE.fullmatch(path.name):
                num_bytes, written_at_secs = measure(path)
                yield Entry(
                    path=path,
                    kind="unfinished",
                    what="the lease of a host that is gone",
                    num_bytes=num_bytes,
                    used_at_secs=written_at_secs,
                )


def _entry_of(path: pathlib.Path, what: str, kept_because: str) -> Entry:
    num_bytes, written_at_secs = measure(path)
    return Entry(
        path=path,
        kind="checkpoint",
        what=what,
        num_bytes=num_bytes,
        used_at_secs=written_at_secs,
        kept_because=kept_because,
        is_needed=bool(kept_because),
    )


def _find_needed(store: CheckpointStore) -> dict[int, str]:
    """Return why a checkpoint must stay, by step, for those that must.

    Raises:
        RunError: it cannot be known which is the best.
    """
    steps = store.steps()
    if len(steps) == 1:
        return {steps[0]: "the only checkpoint"}
    reasons = {}
    for step in reversed(steps):
        try:
            check_checkpoint(store.path(step))
        except DamagedError:
            # The next start sets it aside, and says so.
            reasons[step] = "damaged; the next start sets it aside"
            continue
        reasons[step] = "the newest whole checkpoint"
        break
    else:
        return dict.fromkeys(steps, "no checkpoint of this run is whole")
    best = store.best()
    if best is not None:
        reasons[best] = f"{reasons[best]}, and the best" if best in reasons else "the best checkpoint"
    return reasons
