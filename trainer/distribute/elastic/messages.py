"""The messages between the launcher of an elastic job and its workers.

A generation is the time from one change of the members to the next: within it the job is like any other, with fixed
ranks and a rendezvous of its own.

    worker:    waiting   in no generation, at the start or again; with the state that it has
    launcher:  join      take part in the next generation; with the variables for its rendezvous
    worker:    running   all members of the generation have met
    launcher:  leave     leave the generation after the present step, by agreement with all the others
    launcher:  save      write a checkpoint of the state in memory, and go on waiting
    launcher:  end       exit
"""

import dataclasses
from typing import Any

from trainer.distribute.launchers.channel import Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waiting:
    """A worker is ready for a generation.

    Attributes:
        generation: the one that it was in last; 0 for none.
        step: the number of steps of the state that it has in memory; None if it has none.
        checkpoint_step: the step of the last checkpoint in the run directory that it sees; 0 for none.
        run_dir_token: identifies the run directory that it sees; 0 for none. See `Running`.
        facts: what must be the same on all workers, such as the hash of the dataset.
        why: the error that ended its generation; empty if it was told to leave.
    """

    generation: int
    step: int | None
    checkpoint_step: int
    run_dir_token: int
    facts: dict[str, str]
    why: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A worker has begun to train at `step`; `run_dir_token` identifies the chief's run directory, others send 0."""

    generation: int
    step: int
    run_dir_token: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Join:
    """A worker is to join `generation`, which it meets by the variables of `environment`.

    With `from_checkpoint`, the chief loads its last checkpoint, and no state in memory is used.
    """

    generation: int
    environment: dict[str, str]
    from_checkpoint: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leave:
    """A worker is to leave `generation` after the present step."""

    generation: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Save:
    """A waiting worker is to write a checkpoint of its state in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """A waiting worker is to exit."""


_WORDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in (Waiting, Running, Join, Leave, Save, End)}


def to_message(said: Any) -> Message:
    """Convert one of the classes above to JSON."""
    return {"word": type(said).__name__.lower(), **dataclasses.asdict(said)}


def of_message(message: Message) -> Any:
    """Convert JSON back to the class that `to_message` was given."""
    fields = dict(message)
    return _WORDS[fields.pop("word")](**fields)
