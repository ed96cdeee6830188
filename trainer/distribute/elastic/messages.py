"""What the launcher of an elastic job and its workers say to each other.

A generation is the time from one change of the members to the next: within it the job is like any other, with fixed
ranks and a rendezvous of its own.

    worker:    waiting   not in a generation, for the first time or again; this is what I have
    launcher:  join      here is your place in the next generation
    worker:    running   all members of the generation have met
    launcher:  leave     come out of the generation after the step that is running, by agreement with all the others
    launcher:  save      write a checkpoint of what is in memory, and go on waiting
    launcher:  end       you are not needed any more
"""

import dataclasses
from typing import Any

from trainer.distribute.launchers.channel import Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waiting:
    """A worker is ready for a generation.

    Attributes:
        generation: the one that it comes from; 0 for none.
        step: of the whole state that it has in memory; None where it has none.
        checkpoint_step: of the last checkpoint in the run directory as it sees it; 0 for none.
        mark: which run directory it sees; 0 for none. See `Running`.
        facts: what must be the same on all workers.
        why: what brought it out of its generation, in words; empty where it was told to leave.
    """

    generation: int
    step: int | None
    checkpoint_step: int
    run_dir_token: int
    facts: dict[str, str]
    why: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A worker has begun to train at `step`. The chief gives the `run_dir_token` of its run directory, the others 0."""

    generation: int
    step: int
    run_dir_token: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join:
    """A worker's place in `generation`. With `from_checkpoint`, nobody's memory counts, and the chief loads its last
    checkpoint."""

    generation: int
    environment: dict[str, str]
    from_checkpoint: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leave:
    generation: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Save:
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    pass


_WORDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in (Waiting, Running, Join, Leave, Save, End)}


def to_message(said: Any) -> Message:
    return {"word": type(said).__name__.lower(), **dataclasses.asdict(said)}


def of_message(message: Message) -> Any:
    """What `to_message` was given."""
    fields = dict(message)
    return _WORDS[fields.pop("word")](**fields)
