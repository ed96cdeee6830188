"""Write checkpoints beside the training: the loop copies the state and goes on, a thread writes it down."""

import threading
import time
from collections.abc import Callable

from trainer.errors import StorageError
from trainer.run.checkpoint import Checkpoint
from trainer.run.checkpoint_store import CheckpointStore
from trainer.system import storage_errors

# A training that waited longer than this for the save before is told so.
_LONG_WAIT_SECS = 1.0
# As many saves may fail one after the other before the training ends: a disk that is full for a while is no reason.
_MAX_FAILURES = 3


class CheckpointSaver:
    """Saves to a store in a thread of its own, one checkpoint at a time.

    Memory holds one checkpoint beside the state: who saves again before the last one is written waits for it.
    """

    def __init__(self, store: CheckpointStore, note: Callable[[str], None]) -> None:
        """Save to `store`; `note` is called with a sentence, with the figures, if a save fails."""
        self.store = store
        self.note = note
        # Called before each save, to write what a checkpoint relies on; an OSError counts as a failed save.
        self.before_save: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._num_failures = 0
        self._newest: int | None = None
        self._saved_at_secs = time.monotonic()

    @property
    def secs_since_save(self) -> float:
        """Seconds since the last save began, or since the start."""
        return time.monotonic() - self._saved_at_secs

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint that is written, or is being written."""
        if self._newest is None:
            self._newest = max(self.store.steps(), default=None)
        return self._newest

    def save(self, checkpoint: Checkpoint, *, is_last: bool = False) -> None:
        """Begin to write `checkpoint`, whose arrays must not change any more.

        If `is_last`, return only once it is on the disk.

        Raises:
            StorageError: the last checkpoint, or several one after the other, could not be written.
        """
        self._wait_for_the_one_before(checkpoint.info.global_step)
        self._saved_at_secs = time.monotonic()
        try:
            self.before_save()
        except OSError as e:
            told = f"the checkpoint of step {checkpoint.info.global_step} was not saved, since the metrics before it "
            self._report_failure(e, f"{told}could not be written to {storage_errors.describe(e)}", is_last=is_last)
            return
        before, self._newest = self.newest_step, checkpoint.info.global_step

        def write() -> None:
            try:
                self.store.save(checkpoint)
            except Exception as e:
                self._error, self._newest = e, before

        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()
        if is_last:
            self.wait(is_last=True)

    @property
    def is_saving(self) -> bool:
        """Return True while a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def _wait_for_the_one_before(self, step: int) -> None:
        """Wait for the save before that of `step`; say how long the training has waited for slow storage."""
        is_late, started_secs, before = self.is_saving, time.monotonic(), self._newest
        self.wait()
        if is_late and (waited_secs := time.monotonic() - started_secs) >= _LONG_WAIT_SECS:
            self.note(
                f"warning: training waited {waited_secs:.1f} s before the checkpoint of step {step}, since that of "
                f"step {before} took {time.monotonic() - self._saved_at_secs:.1f} s to write; save less often "
                "(checkpoint.every_steps, checkpoint.every_secs), or use faster storage"
            )

    def wait(self, *, is_last: bool = False) -> None:
        """Return when nothing is being written.

        Raises:
            StorageError: see `save`.
        """
        if self._thread is None:
            return
        self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is None:
            self._num_failures = 0
            return
        if not isinstance(error, OSError):
            raise error
        where = storage_errors.describe(error, self.store.directory)
        self._report_failure(error, f"a checkpoint could not be written to {where}", is_last=is_last)

    def _report_failure(self, error: OSError, told: str, *, is_last: bool) -> None:
        """Note a failed save; raise StorageError if it is one too many."""
        self._num_failures += 1
        stands = "none is there yet" if self._newest is None else f"the one of step {self._newest} stands"
        told = f"{told}; {stands}"
        if is_last or self._num_failures >= _MAX_FAILURES:
            raise StorageError(f"{told}; make room and start the same command again") from error
        self.note(f"warning: {told}, and the next save tries again")
