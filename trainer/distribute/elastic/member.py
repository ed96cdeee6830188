"""The launcher's view of one worker of an elastic job, from the start of its guard to its end."""

import asyncio
import dataclasses
import signal
from typing import Any

from trainer.distribute.elastic.generation import Candidate, HostSlot
from trainer.distribute.elastic.messages import End, Running, Waiting, to_message
from trainer.distribute.launchers.worker import Ended, Ready, Worker
from trainer.errors import StoppedOnRequest


@dataclasses.dataclass(eq=False)
class Member:
    """A worker process of an elastic job.

    Attributes:
        number: counts the workers in the order of their starts; part of the name of the log file.
        generation: the one that it was last told to join; 0 for none.
        waiting: its last `Waiting` message; None while it trains in a generation or is starting.
        has_met: all members of its generation have met.
        is_retired: it takes part in no further generation.
        is_dismissed: it was told to end.
        obstacle: the reason why its guard or its worker was never started.
        loss_reported: its loss has been printed and counted.
    """

    number: int
    slot: HostSlot
    worker: Worker
    ready: Ready | None = None
    generation: int = 0
    waiting: Waiting | None = None
    waiting_since: float = 0.0
    has_met: bool = False
    is_retired: bool = False
    is_dismissed: bool = False
    ended: Ended | None = None
    obstacle: str | None = None
    loss_reported: bool = False

    @property
    def is_alive(self) -> bool:
        return self.ended is None and self.obstacle is None

    @property
    def is_candidate(self) -> bool:
        return self.is_alive and self.waiting is not None and not self.is_retired

    @property
    def has_finished(self) -> bool:
        """True if it ended because the training was complete."""
        return self.ended is not None and _is_exit(self.ended, 0) and not self.is_dismissed

    @property
    def has_saved(self) -> bool:
        """True if it ended with the exit status of a worker that has saved on request."""
        return self.ended is not None and _is_exit(self.ended, StoppedOnRequest.exit_status) and not self.is_dismissed

    @property
    def is_lost(self) -> bool:
        """True if it ended without having been asked to."""
        is_gone = not self.is_alive and not (self.has_finished or self.has_saved)
        return is_gone and not self.is_dismissed

    @property
    def failed_by_itself(self) -> bool:
        """True if it ended with an error of its own, and not because its process was killed or its host was lost."""
        return self.is_lost and self.ended is not None and self.ended.lost is None and self.ended.signal == 0

    @property
    def fell_with_another(self) -> bool:
        """True if Horovod aborted it because a peer was lost while the generation was being formed."""
        return (
            self.ended is not None and self.ended.signal == signal.SIGABRT and self.generation > 0 and not self.has_met
        )

    def hear(self, said: Any) -> None:
        """Update the state from a message of the worker."""
        if isinstance(said, Waiting) and said.generation == self.generation:
            self.waiting, self.waiting_since = said, asyncio.get_running_loop().time()
        elif isinstance(said, Running) and said.generation == self.generation:
            self.has_met = True

    def tell(self, message: Any) -> None:
        """Send one of the classes of `messages` to the worker."""
        self.worker.tell(to_message(message))

    def dismiss(self) -> None:
        """Tell a waiting worker to end."""
        if not self.is_dismissed:
            self.is_dismissed = True
            self.tell(End())

    def as_candidate(self) -> Candidate:
        assert self.waiting is not None, "it waits"
        return Candidate(self.number, self.slot, self.waiting)

    def how_it_ended(self) -> str:
        if self.obstacle is not None:
            return f"could not be started: {self.obstacle}"
        return str(self.ended)

    def last_words(self) -> str:
        """Describe its end with the last lines of its output, for an error message."""
        last = "\n".join(f"    {line}" for line in self.worker.last_lines) or "    (it printed nothing)"
        return f"{self.worker.name} {self.how_it_ended()}; its last lines, from {self.worker.log_file}:\n{last}"


def _is_exit(ended: Ended, status: int) -> bool:
    return ended.lost is None and ended.signal == 0 and ended.status == status
