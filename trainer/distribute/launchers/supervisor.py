"""The supervisor of a job: it starts all workers or none, names the first that fails, and ends the others."""

import asyncio
import dataclasses
import pathlib
import signal
from collections.abc import Callable, Sequence

from trainer.distribute.launchers.hosts import WorkerSlot
from trainer.distribute.launchers.line_printer import LinePrinter
from trainer.distribute.launchers.versions import differences
from trainer.distribute.launchers.waiting import told
from trainer.distribute.launchers.worker import Ended, Ready, Worker
from trainer.errors import DeviceError, OutOfMemoryRestart, StoppedOnRequest, TrainingError
from trainer.system import stop_signals

# When one worker dies, the others fail as well, sometimes before its end is reported.
_BLAME_SECS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisorOptions:
    """The timeouts of a supervisor.

    Attributes:
        start_timeout_secs: for a host to answer.
        stop_grace_secs: for workers to save when the job is to stop.
        failure_grace_secs: for workers to exit by themselves after another has failed.
        stall_timeout_secs: without a step, after the first one; None: no limit.
        host_timeout_secs: without a message from a host, during the job.
        ssh_options: put before the name of the host.
    """

    start_timeout_secs: float = 30.0
    stop_grace_secs: float = 120.0
    failure_grace_secs: float = 5.0
    stall_timeout_secs: float | None = None
    host_timeout_secs: float = 30.0
    ssh_options: Sequence[str] = ()


def describe_wait(workers: Sequence[Worker], timeout_secs: float) -> str:
    """Name the hosts that a launcher waits for before it starts a worker."""
    missing = dict.fromkeys(str(worker.slot.host) for worker in workers if not worker.is_ready)
    return f"waiting for {', '.join(missing)} to answer, up to {timeout_secs:g} s"


class Supervisor:
    """A supervisor of one worker in each of `slots`.

    The output of worker i is kept in `log_dir`/worker-0000i.log and passed to `show` line by line.
    """

    def __init__(
        self,
        slots: Sequence[WorkerSlot],
        *,
        log_dir: pathlib.Path,
        show: Callable[[str], None],
        options: SupervisorOptions | None = None,
    ) -> None:
        self._slots = slots
        self._log_dir = log_dir
        self._show = show
        self._options = options or SupervisorOptions()
        self._workers: list[Worker] = []
        self._num_stop_requests = 0

    def run(self, command: list[str], environments: Callable[[Sequence[Ready]], list[dict[str, str]]]) -> None:
        """Run `command` once in every slot, with the variables that `environments` returns, until all have ended.

        A stop signal asks the workers to save (see `stop_signals`); a second one ends them at once.

        Raises:
            DeviceError: a host does not answer, or the hosts differ in what is installed; nothing was started.
            TrainingError: a worker failed, was killed or hung; it is named, with its last lines.
            OutOfMemoryRestart: the same, because memory did not suffice where the step could not be made again.
            StoppedOnRequest: a signal asked for it, and every worker saved.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        asyncio.run(self._run(command, environments))

    async def _run(self, command: list[str], environments: Callable[[Sequence[Ready]], list[dict[str, str]]]) -> None:
        loop = asyncio.get_running_loop()
        with stop_signals.calling(loop, self._request_stop), LinePrinter(self._show) as show:
            self._workers = [self._make_worker(slot, show) for slot in self._slots]
            try:
                ready = await self._open_all(show)
                await self._watch(command, environments(ready))
            finally:
                await asyncio.gather(*(worker.close() for worker in self._workers))

    def _make_worker(self, slot: WorkerSlot, show: Callable[[str], None]) -> Worker:
        return Worker(
            slot,
            ssh_options=self._options.ssh_options,
            log_file=self._log_dir / f"worker-{slot.worker_index:05}.log",
            show=show,
            lease_secs=self._options.host_timeout_secs,
        )

    async def _open_all(self, show: Callable[[str], None]) -> list[Ready]:
        await asyncio.gather(*(worker.open() for worker in self._workers))
        timeout_secs = self._options.start_timeout_secs
        with told(show, lambda: describe_wait(self._workers, timeout_secs)):
            waits = (worker.wait_until_ready(timeout_secs) for worker in self._workers)
            answers = await asyncio.gather(*waits, return_exceptions=True)
        if self._num_stop_requests:
            raise StoppedOnRequest("stopped on request before any worker was started; the same command goes on")
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        ready = [answer for answer in answers if isinstance(answer, Ready)]
        by_worker = {str(worker.slot.host): found.versions for worker, found in zip(self._workers, ready, strict=True)}
        if found := differences(by_worker):
            raise DeviceError(f"the workers would not compute the same: {'; '.join(found)}; install the same on all")
        return ready

    async def _watch(self, command: list[str], environments: list[dict[str, str]]) -> None:
        runs = {
            asyncio.create_task(worker.run(command, environment, self._options.stall_timeout_secs)): worker
            for worker, environment in zip(self._workers, environments, strict=True)
        }
        stall_watch = asyncio.create_task(self._end_when_hung())
        pending = set(runs)
        ended: dict[Worker, Ended] = {}
        while pending and not any(_has_failed(end) for end in ended.values()):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            ended.update({runs[task]: task.result() for task in done})
        if pending:
            pending = await self._find_out_who_is_left(runs, pending)
            ended.update({runs[task]: task.result() for task in set(runs) - pending})
            await self._end_others(pending)
        stall_watch.cancel()
        # The workers that were ended because of a failure are not its cause.
        self._judge(ended)

    async def _find_out_who_is_left(
        self, runs: dict[asyncio.Task[Ended], Worker], pending: set[asyncio.Task[Ended]]
    ) -> set[asyncio.Task[Ended]]:
        """Return those of `pending` whose hosts still answer a moment after the first failure.

        A worker whose host has become silent may be the cause of the failure: it answers, or it is given up.
        """
        loop = asyncio.get_running_loop()
        failed_at = loop.time()
        _, pending = await asyncio.wait(pending, timeout=_BLAME_SECS)
        while silent := [runs[task] for task in pending if runs[task].answered_at < failed_at]:
            if loop.time() > failed_at + self._options.host_timeout_secs + 1.0:
                break  # a guard on this machine that does not run
            for worker in silent:
                worker.ask()
            _, pending = await asyncio.wait(pending, timeout=0.1)
        return pending

    async def _end_others(self, pending: set[asyncio.Task[Ended]]) -> None:
        """End the workers whose runs are `pending`, and which wait for one that will never answer."""
        if not pending:
            return
        await asyncio.gather(*(worker.stop(self._options.failure_grace_secs) for worker in self._workers))
        _, pending = await asyncio.wait(pending, timeout=self._options.failure_grace_secs + 10)
        if pending:
            for worker in self._workers:
                worker.kill()

    async def _end_when_hung(self) -> None:
        """End a job that makes no step, once the stacks are printed."""
        while not any(worker.hung for worker in self._workers):
            await asyncio.sleep(0.2)
        await asyncio.sleep(2.0)  # the others stand still as well, and say so; the stacks are on their way
        await asyncio.gather(*(worker.stop(self._options.failure_grace_secs) for worker in self._workers))

    def _judge(self, ended: dict[Worker, Ended]) -> None:
        """Raise the error that the ends of all workers amount to, if any."""
        hung = [worker for worker in self._workers if worker.hung]
        if hung:
            raise TrainingError(_explain_hang(hung))
        failed = {worker: end for worker, end in ended.items() if _has_failed(end)}
        if failed and self._num_stop_requests:
            names = ", ".join(worker.name for worker in self._workers if worker in failed)
            raise TrainingError(f"stopped before {names} had saved; the same command goes on from the last checkpoint")
        if failed:
            cause = min(failed.values(), key=_blame)
            if cause.lacked_memory:
                raise OutOfMemoryRestart(_explain_failure(failed), is_host_memory=cause.was_oom_killed)
            raise TrainingError(_explain_failure(failed))
        if any(end.status == StoppedOnRequest.exit_status for end in ended.values()):
            raise StoppedOnRequest("stopped on request; everything is saved, and the same command goes on")

    def _request_stop(self) -> None:
        self._num_stop_requests += 1
        grace_secs = self._options.stop_grace_secs if self._num_stop_requests == 1 else 0.0
        for worker in self._workers:
            task = asyncio.get_running_loop().create_task(worker.stop(grace_secs))
            task.add_done_callback(lambda task: task.exception())


def _has_failed(end: Ended) -> bool:
    return end.signal != 0 or end.status not in (0, StoppedOnRequest.exit_status)


def _blame(end: Ended) -> tuple[int, float]:
    """Return a sort key that puts the cause of a failure before its consequences; among equals, the first in time."""
    if end.lost is not None or end.signal == signal.SIGKILL or end.lacked_memory:
        return 0, end.at
    # TensorFlow aborts a worker when another one is lost, often before the end of the other is reported.
    is_own_crash = end.signal not in (0, signal.SIGABRT)
    return (1 if is_own_crash else 2), end.at


def _explain_failure(failed: dict[Worker, Ended]) -> str:
    worker = min(failed, key=lambda worker: _blame(failed[worker]))
    names = worker.name
    if failed[worker].lost is not None:
        lost = [other for other, end in failed.items() if end.lost == failed[worker].lost]
        names = ", ".join(other.name for other in sorted(lost, key=lambda other: other.slot.worker_index))
    last = "\n".join(f"    {line}" for line in worker.last_lines) or "    (it printed nothing)"
    return (
        f"{names} {failed[worker]}, and the other workers were ended; its last lines, from {worker.log_file}:\n{last}"
    )


def _explain_hang(hung: list[Worker]) -> str:
    """Name the worker that is behind, which all others wait for; if there is none, all hang together."""
    counters = {worker: (worker.hung or {})["counter"] for worker in hung}
    behind = [worker for worker in hung if counters[worker] == min(counters.values())]
    first = behind[0]
    report = first.hung or {}
    if len(behind) < len(hung):
        who = f"{first.name} hangs, and the others wait for it"
    else:
        who = f"{', '.join(worker.name for worker in hung)} hang{'s' if len(hung) == 1 else ''}"
    last = "\n".join(f"    {line}" for line in first.last_lines)
    return (
        f"{who}: no step for {report['for_secs']:.0f} s (process state: {report['state']}); the job was ended; raise "
        f"distribute.stall_timeout_secs if a step takes so long. Its last lines:\n{last}"
    )
