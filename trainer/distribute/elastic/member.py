"""One worker of an elastic job as the launcher sees it, from its guard to its end."""

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
    """A worker process; `number` is its place in the order of starts, and the name of its log.

    Attributes:
        generation: the one that it was last told to join; 0 for none.
        waiting: what it said when it became ready for the next one; None while it is in one, or has yet to come up.
        has_met: whether all members of its generation have met.
        is_retired: it takes part in no further generation.
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
    # Why its guard or its worker was never started.
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
        """Its training was complete."""
        return self.ended is not None and _is_exit(self.ended, 0) and not self.is_dismissed

    @property
    def has_saved(self) -> bool:
        """It was asked to stop, and has ended as a worker does that has saved."""
        return self.ended is not None and _is_exit(self.ended, StoppedOnRequest.exit_status) and not self.is_dismissed

    @property
    def is_lost(self) -> bool:
        """It is gone, and nobody has asked for it."""
        is_gone = not self.is_alive and not (self.has_finished or self.has_saved)
        return is_gone and not self.is_dismissed

    @property
    def failed_by_itself(self) -> bool:
        """It ended with an error of its own, and not because its process or its host was taken away."""
        return self.is_lost and self.ended is not None and self.ended.lost is None and self.ended.signal == 0

    @property
    def fell_with_another(self) -> bool:
        """Horovod ends a process whose peer is lost just when they are about to meet."""
        return (
            self.ended is not None and self.ended.signal == signal.SIGABRT and self.generation > 0 and not self.has_met
        )

    def hear(self, said: Any) -> None:
        """Takes what the worker has said."""
        if isinstance(said, Waiting) and said.generation == self.generation:
            self.waiting, self.waiting_since = said, asyncio.get_running_loop().time()
        elif isinstance(said, Running) and said.generation == self.generation:
            self.has_met = True

    def tell(self, word: Any) -> None:
        self.worker.tell(to_message(word))

    def dismiss(self) -> None:
        """Lets a waiting worker end."""
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
        """Its end with its last lines, for an error."""
        last = "\n".join(f"    {line}" for line in self.worker.last_lines) or "    (it printed nothing)"
        return f"{self.worker.name} {self.how_it_ended()}; its last lines, from {self.worker.log_file}:\n{last}"


def _is_exit(ended: Ended, status: int) -> bool:
    return ended.lost is None and ended.signal == 0 and ended.status == status
