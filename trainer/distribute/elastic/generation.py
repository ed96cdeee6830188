"""Choose the members of the next generation of an elastic job and their ranks. Pure functions: nothing is started."""

import collections
import dataclasses
from collections.abc import Collection, Sequence

from trainer.distribute.elastic.messages import Waiting
from trainer.distribute.launchers.hosts import Host, WorkerSlot


@dataclasses.dataclass(frozen=True)
class HostSlot:
    """A slot for one worker on a host; a worker keeps its slot, and with it its GPU, for its whole life."""

    host_name: str | None
    local_index: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A worker that waits for a generation; `number` counts the workers in the order of their starts."""

    number: int
    slot: HostSlot
    waiting: Waiting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """The members of a generation by rank, with their slots; the first is the chief."""

    members: list[Candidate]
    worker_slots: list[WorkerSlot]
    from_checkpoint: bool


def choose_chief(candidates: Sequence[Candidate], *, run_dir_token: int) -> tuple[Candidate, bool] | None:
    """Choose the member whose state all others take over, and which writes to the run directory.

    It must see the run directory of `run_dir_token`, which is 0 before there is one.

    Returns:
        The chief, and True if its last checkpoint is to be used and not its memory; None if no candidate sees the run
        directory.
    """
    seeing = [c for c in candidates if c.waiting.run_dir_token == run_dir_token] if run_dir_token else list(candidates)
    # Prefer the state in memory with the most steps: a step that one worker has made need not be made again.
    if with_state := [c for c in seeing if c.waiting.step is not None]:
        return max(with_state, key=lambda c: (c.waiting.step or 0, -c.number)), False
    if not seeing:
        return None
    return max(seeing, key=lambda c: (c.waiting.checkpoint_step, -c.number)), True


def form_generation(candidates: Sequence[Candidate], *, run_dir_token: int, max_replicas: int) -> Generation | None:
    """Form a generation of the oldest candidates, the workers of a host next to each other.

    Returns:
        None if no candidate can be the chief.
    """
    chosen = choose_chief(candidates, run_dir_token=run_dir_token)
    if chosen is None:
        return None
    chief, from_checkpoint = chosen
    others = sorted((c for c in candidates if c is not chief), key=lambda c: c.number)[: max_replicas - 1]
    hosts = list(dict.fromkeys(c.slot.host_name for c in [chief, *others]))
    members = sorted([chief, *others], key=lambda c: (hosts.index(c.slot.host_name), c is not chief, c.number))
    return Generation(members=members, worker_slots=_worker_slots_of(members), from_checkpoint=from_checkpoint)


def _worker_slots_of(members: Sequence[Candidate]) -> list[WorkerSlot]:
    num_local = collections.Counter(c.slot.host_name for c in members)
    seen: collections.Counter[str | None] = collections.Counter()
    worker_slots = []
    for rank, member in enumerate(members):
        name = member.slot.host_name
        host = Host(name, num_local[name])
        # Horovod counts the workers of a host without gaps, whichever slots they have.
        worker_slots.append(WorkerSlot(host=host, worker_index=rank, local_index=seen[name], num_local=num_local[name]))
        seen[name] += 1
    return worker_slots


def missing_slots(
    hosts: Sequence[Host], *, taken: Collection[HostSlot], blocked: Collection[str | None], max_replicas: int
) -> list[HostSlot]:
    """Return the slots in which workers are to be started: the free ones of `hosts` that are not blocked, in order."""
    free = [slot for slot in _slots_of(hosts) if slot not in taken and slot.host_name not in blocked]
    return free[: max(0, max_replicas - len(taken))]


def is_listed(slot: HostSlot, hosts: Sequence[Host]) -> bool:
    """Return True if `hosts` still have the slot."""
    return slot in _slots_of(hosts)


def _slots_of(hosts: Sequence[Host]) -> list[HostSlot]:
    return [HostSlot(host.name, i) for host in hosts for i in range(host.num_slots)]
