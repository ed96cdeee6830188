"""The membership of an elastic job: which workers to start, to group, to retire. The supervisor asks twice a second."""

import asyncio
import collections
from collections.abc import Callable, Sequence

from trainer.distribute.elastic import generation
from trainer.distribute.elastic.generation import Candidate, HostSlot, choose_chief, form_generation, is_listed
from trainer.distribute.elastic.member import Member
from trainer.distribute.elastic.messages import Join, Leave, Save
from trainer.distribute.elastic.rendezvous import GenerationRendezvous
from trainer.distribute.launchers.hosts import Host
from trainer.distribute.launchers.versions import differences
from trainer.distribute.launchers.worker import Ready
from trainer.errors import DeviceError, TrainerError, TrainingError

_MAX_COOLDOWN_SECS = 3600.0
# New workers that start within this time join together.
_TOGETHER_SECS = 30.0
# After so many generations in a row without a step, the job fails.
_MAX_VAIN_GENERATIONS = 3


class Roster:
    """The membership of an elastic job: all workers ever started (`members`) and the hosts in use now (`hosts`)."""

    def __init__(
        self,
        *,
        min_replicas: int,
        max_replicas: int,
        wait_secs: float,
        cooldown_secs: float,
        note: Callable[[str], None],
    ) -> None:
        self._min_replicas, self._max_replicas = min_replicas, max_replicas
        self._wait_secs, self._cooldown_secs, self._note = wait_secs, cooldown_secs, note
        self.members: list[Member] = []
        self.hosts: list[Host] = []
        # Identifies the run directory that the chief writes to; 0 before there is one.
        self.run_dir_token = 0
        # The number of the present generation, or of the last one; 0 before the first.
        self.generation = 0
        self.verdict: TrainerError | None = None
        # The state in memory has been saved since the job was last too small to go on.
        self.has_saved = False
        self._meeting: GenerationRendezvous | None = None
        self._facts: dict[str, str] | None = None
        self._is_asked_to_leave = False
        self._short_since: float | None = None
        self._furthest = -1
        self._num_vain = 0
        self._num_losses: collections.Counter[str | None] = collections.Counter()
        self._blocked_until: dict[str | None, float] = {}

    def current(self) -> list[Member]:
        """Return the living members of the present generation, including those that have left it."""
        return [m for m in self.members if m.is_alive and m.generation == self.generation > 0]

    def versions_beside(self, member: Member) -> dict[str, dict[str, str]]:
        """Return the versions installed for `member` and for the first other living member, by host."""
        others = [m for m in self.members if m.is_alive and m.ready is not None and m is not member][:1]
        return {str(m.worker.slot.host): m.ready.versions for m in [*others, member] if m.ready is not None}

    def admit(self, member: Member, now: float) -> None:
        """Dismiss a waiting worker whose configuration, dataset or installation differs from that of the others."""
        assert member.waiting is not None, "it has said so"
        if self._facts is None:
            return
        if found := differences({"the first worker": self._facts, member.worker.name: member.waiting.facts}):
            self._note(f"{member.worker.name} is turned away: {'; '.join(found)}; give all the same")
            member.is_retired = True
            member.dismiss()
            self._block(member.slot.host_name, now)
        elif self.generation and not member.generation:
            self._note(f"{member.worker.name} is ready to join")

    def report_losses(self, now: float) -> None:
        """Report the members lost since the last call, block their hosts, and end the job if none is left."""
        for member in sorted(self.members, key=lambda m: m.ended.at if m.ended is not None else 0.0):
            if member.is_lost and not member.loss_reported:
                member.loss_reported = True
                self._note(f"{member.worker.name} {member.how_it_ended()}")
                if not member.fell_with_another:
                    self._block(member.slot.host_name, now)
                if self.verdict is None and member.failed_by_itself and not any(m.is_alive for m in self.members):
                    error = TrainingError if self.generation else DeviceError
                    self.verdict = error(f"no worker is left: {member.last_words()}")

    def missing_slots(self, now: float) -> list[HostSlot]:
        """Return the slots in which workers are to be started now."""
        listed = {host.name for host in self.hosts}
        for name in [name for name in self._blocked_until if name not in listed]:
            # A host that is listed again has been repaired.
            del self._blocked_until[name], self._num_losses[name]
        blocked = [name for name, until in self._blocked_until.items() if now < until]
        taken = [m.slot for m in self.members if m.is_alive]
        return generation.missing_slots(self.hosts, taken=taken, blocked=blocked, max_replicas=self._max_replicas)

    def regroup(self, now: float) -> None:
        """Ask the present generation to leave if a worker is to join or to go; form the next once all have left it."""
        self._retire()
        current = self.current()
        if any(m.waiting is None for m in current):
            if not self._is_asked_to_leave and self._is_change_due(current, now):
                self._is_asked_to_leave = True
                for member in current:
                    member.tell(Leave(generation=self.generation))
            return
        for member in current:
            if member.is_retired:
                member.dismiss()
        waiting = [m for m in self.members if m.is_candidate]
        candidates = [m.as_candidate() for m in waiting]
        booting = [m for m in self.members if m.is_alive and m.waiting is None and not m.is_retired]
        # If no worker has state in memory, waiting for those that are starting costs nothing.
        is_patient = booting and not any(c.waiting.step is not None for c in candidates)
        if len(candidates) >= self._min_replicas and not is_patient:
            self._short_since = None
            if self._facts is None:
                self._facts = candidates[0].waiting.facts
                for member in waiting:
                    self.admit(member, now)
                candidates = [m.as_candidate() for m in waiting if m.is_candidate]
            if len(candidates) >= self._min_replicas:
                self._form(candidates)
        elif len(candidates) + len(booting) + len(self.missing_slots(now)) < self._min_replicas:
            self._wait_for_more(candidates, len(candidates) + len(booting), now)
        else:
            self._short_since = None

    def shut_down(self) -> None:
        """Dismiss the waiting workers; before that, have one of them save if a step would be lost."""
        current = self.current()
        if any(m.waiting is None for m in current):
            return
        waiting = [m for m in self.members if m.is_alive and m.waiting is not None]
        is_complete = any(m.has_finished or m.has_saved for m in self.members)
        if not is_complete:
            self._save([m.as_candidate() for m in waiting if not m.is_dismissed])
        for member in waiting:
            member.dismiss()
        if self.verdict is not None or is_complete:
            # A worker that is still starting has no generation to wait for.
            for member in self.members:
                if member.is_alive and member.waiting is None:
                    member.worker.abandon()

    def close(self) -> None:
        if self._meeting is not None:
            self._meeting.close()

    def _retire(self) -> None:
        """Retire members on hosts that may not be used any more, unless too few would be left."""
        staying = [m for m in self.members if m.is_alive and not m.is_retired and is_listed(m.slot, self.hosts)]
        if sum(m.is_candidate or m.generation > 0 for m in staying) < self._min_replicas:
            return
        for member in self.members:
            if member.is_alive and not member.is_retired and member not in staying:
                member.is_retired = True
                self._note(f"{member.worker.name} is let go: its host is no longer listed")
                if not member.generation:
                    member.dismiss()

    def _is_change_due(self, current: Sequence[Member], now: float) -> bool:
        if any(m.is_retired for m in current):
            return True
        new = [m for m in self.members if m.is_candidate and m.generation < self.generation]
        booting = any(m.is_alive and m.waiting is None and m.generation == 0 for m in self.members)
        return bool(new) and (not booting or now - min(m.waiting_since for m in new) >= _TOGETHER_SECS)

    def _form(self, candidates: Sequence[Candidate]) -> None:
        formed = form_generation(candidates, run_dir_token=self.run_dir_token, max_replicas=self._max_replicas)
        if formed is None:
            self.verdict = TrainingError(
                "no worker is left that sees the run directory, and so nobody could write to it; the same command goes "
                "on from the last checkpoint on a host that has it; put --run-dir on a file system that all hosts share"
            )
            return
        furthest = max(max(c.waiting.step or 0, c.waiting.checkpoint_step) for c in candidates)
        is_vain = self.generation > 0 and not self._is_asked_to_leave and furthest <= self._furthest
        self._num_vain = self._num_vain + 1 if is_vain else 0
        self._furthest = max(furthest, self._furthest)
        if self._num_vain >= _MAX_VAIN_GENERATIONS:
            words = next((c.waiting.why for c in candidates if c.waiting.why), "nobody said why")
            self.verdict = TrainingError(
                f"the workers failed {self._num_vain} times in a row at step {furthest} without one of them being lost "
                f"in between; the last time: {words}"
            )
            return
        self.generation += 1
        self._is_asked_to_leave = self.has_saved = False
        self._call_together(formed)
        start = "" if formed.from_checkpoint else f" from step {formed.members[0].waiting.step}"
        goes = "begins" if self.generation == 1 else "goes on"
        self._note(f"the job {goes} with {len(formed.members)} workers{start}")

    def _call_together(self, formed: generation.Generation) -> None:
        by_number = {m.number: m for m in self.members}
        members = [by_number[candidate.number] for candidate in formed.members]
        ready: list[Ready] = [m.ready for m in members if m.ready is not None]
        old, self._meeting = self._meeting, GenerationRendezvous(formed.worker_slots, ready)
        if old is not None:
            asyncio.get_running_loop().run_in_executor(None, old.close)
        for member, environment in zip(members, self._meeting.environments, strict=True):
            member.generation, member.waiting, member.has_met = self.generation, None, False
            member.tell(
                Join(generation=self.generation, environment=environment, from_checkpoint=formed.from_checkpoint)
            )

    def _wait_for_more(self, candidates: Sequence[Candidate], num_there: int, now: float) -> None:
        if self._short_since is None:
            self._short_since = now
            self._note(
                f"{num_there} of at least {self._min_replicas} workers are there; waiting up to "
                f"{self._wait_secs:g} s for more"
            )
            # The waiting workers may be lost as well.
            self._save(candidates)
        if now - self._short_since < self._wait_secs:
            return
        lost = [m for m in self.members if m.is_lost]
        last = f"; the last that was lost: {lost[-1].last_words()}" if lost else ""
        text = (
            f"fewer than {self._min_replicas} workers for {self._wait_secs:g} s (--min-replicas {self._min_replicas})"
        )
        if self.generation:
            self.verdict = TrainingError(f"{text}; what was done is saved, and the same command goes on{last}")
        else:
            self.verdict = DeviceError(f"{text}, so nothing was trained; see that the hosts are up{last}")

    def _save(self, candidates: Sequence[Candidate]) -> None:
        """Tell one of the workers that have the last step in memory to save."""
        chosen = choose_chief(candidates, run_dir_token=self.run_dir_token) if self.generation and candidates else None
        if chosen is not None and not self.has_saved:
            chief, is_saved = chosen
            self.has_saved = True
            if not is_saved:
                next(m for m in self.members if m.number == chief.number).tell(Save())

    def _block(self, host_name: str | None, now: float) -> None:
        self._num_losses[host_name] += 1
        secs = min(self._cooldown_secs * 2 ** (self._num_losses[host_name] - 1), _MAX_COOLDOWN_SECS)
        self._blocked_until[host_name] = now + secs
