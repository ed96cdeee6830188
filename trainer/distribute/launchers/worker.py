"""One worker as the launcher sees it: its guard's reports, its output, its end."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from trainer.distribute.launchers.hosts import Place, find_own_address
from trainer.errors import DeviceError

_GUARD = "trainer.distribute.launchers.guard"
_NUM_LAST_LINES = 20
_NUM_BYTES_A_LINE = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """What a guard says of its host before the worker starts."""

    host: str
    address: str
    interface: str
    port: int
    launcher_address: str
    time: float
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How a worker ended; `signal` is 0 where it exited by itself. `at` orders the ends."""

    status: int
    signal: int
    at: float

    def __str__(self) -> str:
        return f"was ended by signal {self.signal}" if self.signal else f"exited with status {self.status}"


class Worker:
    """Starts the guard of one place, and through it the worker."""

    def __init__(
        self, place: Place, *, ssh_options: Sequence[str], log_file: pathlib.Path | None, show: Callable[[str], None]
    ):
        self.place = place
        self.last_lines: collections.deque[str] = collections.deque(maxlen=_NUM_LAST_LINES)
        self.hung: dict[str, Any] | None = None
        self._ssh_options = ssh_options
        self.log_file = log_file
        self._show = show
        self._reported_end: tuple[int, int] | None = None
        self._other_words: collections.deque[str] = collections.deque(maxlen=_NUM_LAST_LINES)
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._process: asyncio.subprocess.Process

    @property
    def name(self) -> str:
        return f"worker {self.place.worker_index} on {self.place.host}"

    async def open(self) -> None:
        """Starts the guard."""
        guard = [sys.executable, "-m", _GUARD]
        name = self.place.host.name
        own_address = find_own_address(name) if name is not None else "127.0.0.1"
        if own_address is not None:
            guard.append(own_address)
        elif name is not None:
            # One argument for the shell at the other end. Where the directory is not there, that says so.
            there = f"cd {shlex.quote(str(pathlib.Path.cwd()))} && exec {shlex.join(guard)}"
            guard = ["ssh", "-o", "BatchMode=yes", *self._ssh_options, name, there]
        self._process = await asyncio.create_subprocess_exec(
            *guard,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_NUM_BYTES_A_LINE,
            # Ctrl-C on the terminal goes to the launcher alone, which decides what becomes of it.
            start_new_session=True,
        )

    async def wait_until_ready(self, timeout_secs: float) -> Ready:
        """Raises DeviceError where the host does not answer, or cannot run the guard."""
        reports = asyncio.create_task(self._read_reports())
        try:
            async with asyncio.timeout(timeout_secs):
                waits: list[asyncio.Future[Any]] = [self._ready, reports]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise DeviceError(
                f"{self.place.host} did not answer within {timeout_secs:g} s; see that it is up and that "
                f"ssh -o BatchMode=yes {self.place.host} true returns at once"
            ) from None
        if not self._ready.done():
            self._ready.cancel()
            words = " ".join(" ".join(self._other_words).split()) or "it said nothing"
            raise DeviceError(
                f"no worker can be started on {self.place.host} ({words}); see that ssh -o BatchMode=yes "
                f"{self.place.host} reaches it, and that {sys.executable} and {pathlib.Path.cwd()} are there"
            )
        return self._ready.result()

    async def run(self, command: list[str], environment: dict[str, str], stall_timeout_secs: float | None) -> Ended:
        """Starts the worker and returns when it, its output and its guard have ended."""
        await self._order(
            {
                "order": "start",
                "command": command,
                "environment": environment,
                "stall_timeout_secs": stall_timeout_secs,
            }
        )
        await self._read_output()
        status = await self._process.wait()
        at = asyncio.get_running_loop().time()
        if self._reported_end is not None:
            return Ended(status=self._reported_end[0], signal=self._reported_end[1], at=at)
        # The guard itself was killed, or the connection to it is gone.
        return Ended(status=max(status, 0), signal=max(-status, 0), at=at)

    async def stop(self, grace_secs: float) -> None:
        """Asks the worker to save and end, and has it killed after `grace_secs`."""
        await self._order({"order": "stop", "grace_secs": grace_secs})

    def abandon(self) -> None:
        """Closes the line of life: the guard ends the worker by itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def close(self) -> None:
        """Ends a guard whose worker was never started."""
        self.abandon()
        await self._process.wait()

    def kill(self) -> None:
        """For a guard that does not even answer that."""
        if self._process.returncode is None:
            self._process.kill()

    async def _order(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None, "opened with a pipe"
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return  # the guard has ended, which is seen where its output ends

    async def _read_reports(self) -> None:
        assert self._process.stderr is not None, "opened with a pipe"
        async for line in self._process.stderr:
            try:
                report = json.loads(line)
                kind = report.pop("report")
            except (ValueError, KeyError, AttributeError, TypeError):
                self._other_words.append(line.decode(errors="replace"))  # ssh, or Python, has something to say
                continue
            if kind == "ready" and not self._ready.done():
                self._ready.set_result(Ready(**report))
            elif kind == "hung":
                self.hung = report
            elif kind == "ended":
                self._reported_end = (report["status"], report["signal"])

    async def _read_output(self) -> None:
        assert self._process.stdout is not None, "opened with a pipe"
        with self.log_file.open("ab") if self.log_file else contextlib.nullcontext() as log:
            while True:
                try:
                    line = await self._process.stdout.readline()
                except ValueError:  # a line longer than the limit; what was read of it is gone
                    line = b"(a line of over 1 MiB was left out)\n"
                if not line:
                    return
                if log is not None:
                    log.write(line)
                    log.flush()
                text = line.decode(errors="replace").rstrip("\r\n")
                self.last_lines.append(text)
                self._show(f"[{self.place.worker_index}] {text}")
