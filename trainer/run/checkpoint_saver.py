"""Write checkpoints beside the training: the loop copies the state and goes on, a thread writes it down."""

import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable

from trainer.errors import StorageError
from trainer.run.checkpoint import Checkpoint
from trainer.run.checkpoint_store import CheckpointStore

# As many saves may fail one after the other before the training ends: a disk that is full for a while is no reason.
_MAX_FAILURES = 3


class CheckpointSaver:
    """Saves to a store in a thread of its own, one checkpoint at a time.

    Memory holds one checkpoint beside the state: who saves again before the last one is written waits for it.
    """

    def __init__(self, store: CheckpointStore, note: Callable[[str], None]) -> None:
        """Save to `store`; `note` is called with a sentence, with the figures, if a save fails."""
        self.store = store
        self._note = note
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
        self.wait()
        self._saved_at_secs = time.monotonic()
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
        self._num_failures += 1
        stands = "none is there yet" if self._newest is None else f"the one of step {self._newest} stands"
        told = f"a checkpoint could not be written to {_describe(self.store.directory, error)}; {stands}"
        if is_last or self._num_failures >= _MAX_FAILURES:
            raise StorageError(f"{told}; make room and start the same command again") from error
        self._note(f"warning: {told}, and the next save tries again")


def _describe(directory: pathlib.Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    try:
        free_bytes = shutil.disk_usage(directory if directory.exists() else directory.parent).free
    except OSError:
        return f"{directory} ({reason}; the directory is gone)"
    writable = "" if os.access(directory, os.W_OK) else ", not writable"
    return f"{directory} ({reason}; {free_bytes / 2**20:,.0f} MiB free{writable})"
