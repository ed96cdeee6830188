"""The launcher's view of one worker: the reports of its guard, its output, its end."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from trainer.distribute.launchers.channel import Message
from trainer.distribute.launchers.hosts import Host, WorkerSlot, find_own_address
from trainer.distribute.launchers.lease import LOOK_EVERY_SECS, Lease
from trainer.distribute.launchers.output_log import OutputLog
from trainer.errors import DeviceError, OutOfMemoryRestart
from trainer.system import run_module
from trainer.system.child_python import python_command

_GUARD = "trainer.distribute.launchers.guard"
_SSH = "ssh"
_NUM_LAST_LINES = 20
_NUM_BYTES_A_LINE = 2**20
# For the output still in the pipes when a guard has ended; a process that outlives it may keep them open for ever.
_LAST_WORDS_SECS = 10.0
# For a guard without a worker to exit by itself.
_CLOSE_SECS = 5.0
_CLOSE_UNREADY_SECS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """The report of a guard about its host before the worker starts."""

    host: str
    address: str
    interface: str
    port: int
    launcher_address: str
    time: float
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of a worker.

    Attributes:
        status: its exit status.
        signal: the signal that ended it; 0 if it exited by itself.
        at: the time in seconds of the event loop's clock, to order the ends.
        was_oom_killed: the kernel killed a process of its cgroup for lack of memory, most likely this one.
        lost: describes how its host was lost, in which case status and signal are those of the connection.
    """

    status: int
    signal: int
    at: float
    was_oom_killed: bool = False
    lost: str | None = None

    @property
    def lacked_memory(self) -> bool:
        """True if the worker would go on from the last checkpoint if it computed less at a time."""
        return self.was_oom_killed or self.status == OutOfMemoryRestart.exit_status

    def __str__(self) -> str:
        if self.lost is not None:
            return self.lost
        if self.was_oom_killed:
            return f"was ended by signal {self.signal}, by the kernel for lack of memory"
        return f"was ended by signal {self.signal}" if self.signal else f"exited with status {self.status}"


def guard_command(host: Host, *, ssh_options: Sequence[str], lease_secs: float | None) -> list[str]:
    """Return the command that starts a guard on `host`, on this machine or by ssh."""
    guard = python_command(_GUARD)
    name = host.name
    own_address = find_own_address(name) if name is not None else "127.0.0.1"
    if own_address is not None:
        return [*guard, own_address]
    assert name is not None, "this machine has an address"
    options: list[str] = []
    if lease_secs is not None:
        guard.append(f"--lease-secs={lease_secs:g}")
        # They end an ssh whose launcher was killed while the host was silent.
        alive = {"ConnectTimeout": math.ceil(lease_secs), "ServerAliveInterval": math.ceil(lease_secs / 3)}
        options = [f"-o{option}={value}" for option, value in {**alive, "ServerAliveCountMax": 3}.items()]
    # One argument for the remote shell, which prints an error if the directory is missing.
    there = f"cd {shlex.quote(str(pathlib.Path.cwd()))} && exec {shlex.join(guard)}"
    # ssh takes the first of two values for an option, so the user's count.
    return [_SSH, "-o", "BatchMode=yes", *ssh_options, *options, name, there]


class Worker:
    """A worker in `slot`, started through a guard.

    With `lease_secs`, both ends of the connection to another host give the other up when it is silent for so long.
    With `on_said`, the worker has a channel, and `on_said` is called with each of its messages.
    """

    def __init__(
        self,
        slot: WorkerSlot,
        *,
        ssh_options: Sequence[str],
        log_file: pathlib.Path | None,
        show: Callable[[str], None],
        lease_secs: float | None = None,
        on_said: Callable[[Message], None] | None = None,
    ):
        self.slot = slot
        self.answered_at = -math.inf
        self.last_lines: collections.deque[str] = collections.deque(maxlen=_NUM_LAST_LINES)
        self.hung: dict[str, Any] | None = None
        self._ssh_options = ssh_options
        self.log_file = log_file
        self._show = show
        self._on_said = on_said
        self._reported_end: dict[str, Any] | None = None
        self._lease = Lease(lease_secs)
        self._is_far = False
        self._lost: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._other_words: collections.deque[str] = collections.deque(maxlen=_NUM_LAST_LINES)
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return f"worker {self.slot.worker_index} on {self.slot.host}"

    @property
    def is_ready(self) -> bool:
        """True if its host has answered."""
        return self._ready.done() and not self._ready.cancelled()

    async def open(self) -> None:
        """Start the guard.

        Raises:
            DeviceError: there is no ssh on this machine.
        """
        command = self._guard_command()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_NUM_BYTES_A_LINE,
                # Ctrl-C on the terminal must reach the launcher alone, which then stops the workers.
                start_new_session=True,
            )
        except FileNotFoundError:
            raise DeviceError(
                f"{command[0]} is not installed here, and {self.slot.host} is reached by it; install openssh-client"
            ) from None
        self._tasks = [asyncio.create_task(self._read_reports()), asyncio.create_task(self._keep_lease())]

    def _guard_command(self) -> list[str]:
        command = guard_command(self.slot.host, ssh_options=self._ssh_options, lease_secs=self._lease.secs)
        self._is_far = command[0] == _SSH
        return command

    async def wait_until_ready(self, timeout_secs: float) -> Ready:
        """Return the report of the guard; raise DeviceError if the host does not answer or cannot run the guard."""
        try:
            async with asyncio.timeout(timeout_secs):
                waits: list[asyncio.Future[Any]] = [self._ready, self._tasks[0]]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise DeviceError(f"{self.slot.host} did not answer within {timeout_secs:g} s; {self._advice()}") from None
        if not self._ready.done():
            self._ready.cancel()
            words = " ".join(" ".join(self._other_words).split()) or "it said nothing"
            raise DeviceError(f"no worker can be started on {self.slot.host} ({words}); {self._advice()}")
        return self._ready.result()

    def _advice(self) -> str:
        if not self._is_far:
            return f"see what this prints: {shlex.join(self._guard_command())} </dev/null"
        return (
            f"see that ssh -o BatchMode=yes {self.slot.host} true returns at once, and that {sys.executable}, "
            f"{run_module.__file__} and {pathlib.Path.cwd()} are there"
        )

    async def run(self, command: list[str], environment: dict[str, str], stall_timeout_secs: float | None) -> Ended:
        """Start the worker, and return when it, its output and its guard have ended."""
        await self._order(
            {
                "order": "start",
                "command": command,
                "environment": environment,
                "stall_timeout_secs": stall_timeout_secs,
                "has_channel": self._on_said is not None,
            }
        )
        assert self._process is not None, "opened"
        output = asyncio.create_task(self._read_output())
        status = await self._process.wait()
        at = asyncio.get_running_loop().time()
        _, unfinished = await asyncio.wait([output, *self._tasks], timeout=_LAST_WORDS_SECS)
        for task in unfinished:
            task.cancel()
        if self._reported_end is not None:
            return Ended(**self._reported_end, at=at)
        if self._is_far or status == 0:
            words = " ".join(" ".join(self._other_words).split()) or "it said nothing"
            lost = self._lost or f"was lost: the line to its host ended with status {status} ({words})"
            return Ended(status=max(status, 0), signal=max(-status, 0), at=at, lost=lost)
        # The guard itself was killed.
        return Ended(status=max(status, 0), signal=max(-status, 0), at=at)

    async def stop(self, grace_secs: float) -> None:
        """Ask the worker to save and exit, and have it killed after `grace_secs`."""
        await self._order({"order": "stop", "grace_secs": grace_secs})

    def tell(self, message: Message) -> None:
        """Send a message to the worker over its channel."""
        self._write({"order": "tell", "message": message})

    def abandon(self) -> None:
        """Close the standard input of the guard, which then ends the worker by itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def close(self) -> None:
        """End a guard that has no worker, or none any more."""
        self.abandon()
        if self._process is not None:
            try:
                # An ssh that is still connecting does not notice that its input has ended.
                await asyncio.wait_for(self._process.wait(), _CLOSE_SECS if self.is_ready else _CLOSE_UNREADY_SECS)
            except TimeoutError:
                self.kill()
                await self._process.wait()
        for task in self._tasks:
            task.cancel()

    def kill(self) -> None:
        """Kill a guard that does not end by itself."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _keep_lease(self) -> None:
        """Give the host up once it has been silent for too long; its guard does the same with the launcher."""
        if not self._is_far or self._lease.secs is None:
            return
        assert self._process is not None, "opened"
        while self._process.returncode is None:
            self._write({"order": "answer"})
            await asyncio.sleep(LOOK_EVERY_SECS)
            # Until it is ready, `wait_until_ready` decides how long is too long.
            if self._ready.done() and self._lease.has_ended():
                self._lost = f"is out of reach: its host did not answer for {self._lease.secs:g} s"
                self.kill()
                return

    def ask(self) -> None:
        """Ask the guard for an answer, which sets `answered_at`, on the clock of the event loop."""
        self._write({"order": "answer"})

    async def _order(self, order: dict[str, Any]) -> None:
        self._write(order)
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await self._process.stdin.drain()

    def _write(self, order: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None or self._process.stdin.is_closing():
            return  # stopped before it was opened, or given up
        # A guard that has ended is noticed at the end of its output.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def _read_reports(self) -> None:
        assert self._process is not None and self._process.stderr is not None, "opened with a pipe"
        async for line in self._process.stderr:
            try:
                report = json.loads(line)
                kind = report.pop("report")
            except (ValueError, KeyError, AttributeError, TypeError):
                self._other_words.append(line.decode(errors="replace"))  # ssh, or Python, has something to say
                continue
            self._lease.renew()
            self.answered_at = asyncio.get_running_loop().time()
            if kind == "ready" and not self._ready.done():
                self._ready.set_result(Ready(**report))
            elif kind == "said" and self._on_said is not None:
                self._on_said(report["message"])
            elif kind == "hung":
                self.hung = report
            elif kind == "ended":
                self._reported_end = report

    async def _read_output(self) -> None:
        assert self._process is not None and self._process.stdout is not None, "opened with a pipe"
        with OutputLog(self.log_file, self._show) as log:
            while True:
                try:
                    line = await self._process.stdout.readline()
                except ValueError:  # a line longer than the limit; what was read of it is gone
                    line = b"(a line of over 1 MiB was left out)\n"
                if not line:
                    return
                log.write(line)
                text = line.decode(errors="replace").rstrip("\r\n")
                self.last_lines.append(text)
                self._show(f"[{self.slot.worker_index}] {text}")
