"""The supervisor of an elastic job: it starts workers where there are slots, and forms generations of them.

Horovod's own elastic driver is not used. It gives up the whole host of a worker that dies, and with the last host the
job; it lets the members of a generation look for each other as they come, so that the first wait in vain for the last,
and a Horovod that waits in vain ends its process; and it stops the job while a new worker comes up. Here the members of
a generation are called together once all of them wait, which new workers do when they are ready to train.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from trainer.distribute.elastic.discovery import HostSource
from trainer.distribute.elastic.generation import HostSlot
from trainer.distribute.elastic.member import Member
from trainer.distribute.elastic.membership import Roster
from trainer.distribute.elastic.messages import Running, Waiting, of_message
from trainer.distribute.launchers.channel import Message
from trainer.distribute.launchers.hosts import Host, WorkerSlot
from trainer.distribute.launchers.line_printer import LinePrinter
from trainer.distribute.launchers.supervisor import SupervisorOptions, describe_wait
from trainer.distribute.launchers.versions import differences
from trainer.distribute.launchers.waiting import told
from trainer.distribute.launchers.worker import Worker
from trainer.errors import ConfigError, DeviceError, StoppedOnRequest, TrainingError
from trainer.system import stop_signals

# For other hung workers to be reported as well, and for their stacks to be printed.
_HANG_SECS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElasticOptions:
    """The size limits and the timeouts of an elastic job.

    Attributes:
        wait_secs: how long to wait while there are fewer workers than `min_replicas`.
        cooldown_secs: before a host that has lost a worker gets another one; doubled with each loss.
        discover_every_secs: between two queries of the host source.
    """

    min_replicas: int
    max_replicas: int
    wait_secs: float = 600.0
    cooldown_secs: float = 60.0
    discover_every_secs: float = 1.0
    supervisor: SupervisorOptions = dataclasses.field(default_factory=SupervisorOptions)


class ElasticSupervisor:
    """A supervisor of the workers on the hosts of `source`.

    The output of the i-th worker started is kept in `log_dir`/worker-0000i.log and passed to `show` line by line.
    """

    def __init__(
        self, source: HostSource, *, log_dir: pathlib.Path, show: Callable[[str], None], options: ElasticOptions
    ) -> None:
        self._source, self._log_dir, self._show, self._options = source, log_dir, show, options
        self._roster = Roster(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            wait_secs=options.wait_secs,
            cooldown_secs=options.cooldown_secs,
            note=self._note,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_stop_requests = 0
        self._hung_since: float | None = None
        self._print: Callable[[str], None] = show

    def run(self, command: list[str], environment: Callable[[HostSlot], dict[str, str]]) -> None:
        """Run `command` in every slot, with `environment` of the slot, until the training is complete.

        A stop signal asks the workers to save (see `stop_signals`); a second one ends them at once.

        Raises:
            ConfigError: the source cannot say which hosts there are.
            DeviceError: there were too few workers for a first generation.
            TrainingError: there were too few workers for too long, or they failed repeatedly without a step in between.
            StoppedOnRequest: a signal asked for it, and the job has saved.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        asyncio.run(self._run(command, environment))

    async def _run(self, command: list[str], environment: Callable[[HostSlot], dict[str, str]]) -> None:
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        with stop_signals.calling(loop, self._request_stop), LinePrinter(self._show) as self._print:
            self._roster.hosts = await asyncio.to_thread(self._source.find)
            watch = asyncio.create_task(self._watch_hosts())
            try:
                while not self._is_over():
                    self._changed.clear()
                    for slot in self._decide():
                        self._start(slot, command, environment(slot))
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), 0.5)
            finally:
                watch.cancel()
                await self._end_everybody()
        self._judge()

    def _is_over(self) -> bool:
        return self._is_ending() and not any(member.is_alive for member in self._roster.members)

    def _is_ending(self) -> bool:
        roster = self._roster
        has_ended = any(member.has_finished or member.has_saved for member in roster.members)
        return has_ended or self._num_stop_requests > 0 or roster.verdict is not None

    def _decide(self) -> list[HostSlot]:
        """Do what is due now, and return the slots to start workers in."""
        roster, now = self._roster, asyncio.get_running_loop().time()
        if self._is_ending():
            roster.shut_down()
            return []
        roster.report_losses(now)
        self._end_the_hung(now)
        roster.regroup(now)
        return roster.missing_slots(now) if roster.verdict is None else []

    def _start(self, slot: HostSlot, command: list[str], environment: dict[str, str]) -> None:
        number = len(self._roster.members)
        options = self._options.supervisor
        worker_slot = WorkerSlot(
            host=Host(slot.host_name, 1), worker_index=number, local_index=slot.local_index, num_local=1
        )
        worker = Worker(
            worker_slot,
            ssh_options=options.ssh_options,
            log_file=self._log_dir / f"worker-{number:05}.log",
            show=self._print,
            lease_secs=options.host_timeout_secs,
            on_said=lambda message: self._hear(member, message),
        )
        member = Member(number, slot, worker)
        self._roster.members.append(member)
        task = asyncio.create_task(self._live(member, command, environment))
        self._tasks.add(task)

    async def _live(self, member: Member, command: list[str], environment: dict[str, str]) -> None:
        worker, options = member.worker, self._options.supervisor
        try:
            await worker.open()
            with told(self._note, lambda: describe_wait([worker], options.start_timeout_secs)):
                member.ready = await worker.wait_until_ready(options.start_timeout_secs)
            if found := differences(self._roster.versions_beside(member)):
                raise DeviceError(f"it would not compute the same: {'; '.join(found)}; install the same on all")
            member.ended = await worker.run(command, environment, options.stall_timeout_secs)
        except DeviceError as e:
            member.obstacle = str(e)
        finally:
            await worker.close()
            self._changed.set()

    def _hear(self, member: Member, message: Message) -> None:
        said: Any = of_message(message)
        member.hear(said)
        if isinstance(said, Waiting):
            self._roster.admit(member, asyncio.get_running_loop().time())
        elif isinstance(said, Running):
            self._roster.run_dir_token = said.run_dir_token or self._roster.run_dir_token
        self._changed.set()

    async def _watch_hosts(self) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(self._options.discover_every_secs)
            try:
                self._roster.hosts = await asyncio.to_thread(self._source.find)
                complaint = ""
            except ConfigError as e:
                # A running job keeps the hosts that it knows.
                if str(e) != complaint:
                    self._note(complaint := str(e))
            self._changed.set()

    def _end_the_hung(self, now: float) -> None:
        """End the workers that make no step while the others wait for them; if all hang, end the job."""
        hung = [m for m in self._roster.current() if m.worker.hung is not None]
        if not hung:
            self._hung_since = None
            return
        self._hung_since = self._hung_since or now
        if now - self._hung_since < _HANG_SECS:
            return
        counters = {m: (m.worker.hung or {})["counter"] for m in hung}
        behind = [m for m in hung if counters[m] == min(counters.values())]
        for member in hung:
            member.worker.hung = None
        if len(behind) == len(self._roster.current()):
            behind_words = behind[0].last_words()
            self._roster.verdict = TrainingError(
                f"all workers hang: no step for {self._options.supervisor.stall_timeout_secs:g} s; the job was ended; "
                f"raise distribute.stall_timeout_secs if a step takes so long. {behind_words}"
            )
        for member in behind:
            self._note(f"{member.worker.name} hangs, and is ended")
            self._soon(member.worker.stop(0.0))

    def _request_stop(self) -> None:
        self._num_stop_requests += 1
        grace_secs = self._options.supervisor.stop_grace_secs if self._num_stop_requests == 1 else 0.0
        for member in self._roster.members:
            if member.is_alive:
                self._soon(member.worker.stop(grace_secs))
        self._changed.set()

    async def _end_everybody(self) -> None:
        """End the workers that are left after an error of the launcher itself."""
        await asyncio.gather(*(member.worker.close() for member in self._roster.members if member.is_alive))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._roster.close)

    def _judge(self) -> None:
        """Raise the error that the ends of all workers amount to, if any."""
        members = self._roster.members
        if any(member.has_finished for member in members):
            return
        if any(member.has_saved for member in members) or (self._num_stop_requests and self._roster.has_saved):
            raise StoppedOnRequest("stopped on request; everything is saved, and the same command goes on")
        if self._num_stop_requests and not self._roster.generation:
            raise StoppedOnRequest("stopped on request before the training began; the same command goes on")
        if self._num_stop_requests:
            raise TrainingError(
                "stopped before the workers had saved; the same command goes on from the last checkpoint"
            )
        assert self._roster.verdict is not None, "nothing else ends a job"
        raise self._roster.verdict

    def _soon(self, what: Any) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, text: str) -> None:
        self._print(f"elastic: {text}")
