"""A job of `trainer launch` in processes of its own, which can be killed: one of them, or all at once.

A job of one process is forked from the harness, which has imported TensorFlow and run nothing of it: that saves the
eight seconds of the import. It is a process like any other, and SIGKILL ends it. The workers of the other jobs are
started by the launcher, as users start them.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from typing import Final, Literal

import psutil

from tests.launch.traces import Traces

REPOSITORY: Final = pathlib.Path(__file__).resolve().parents[2]
# In the environment of each process of a job, also of one whose parent is gone.
_TOKEN: Final = "CHAOS_TOKEN"
# No machine is busy for so long; who waits in vain says so.
PATIENCE_SECS: Final = 900.0
_LOOK_EVERY_SECS: Final = 0.002

Victim = Literal["launcher", "worker", "chief", "group"]


class Job:
    """A job, which need not be alive any more."""

    def __init__(self, pid: int, token: str | None, poll: Callable[[], int | None], output_file: pathlib.Path) -> None:
        """Use `fork` or `spawn`."""
        self.pid = pid
        self._token = token
        self._poll = poll
        self._output_file = output_file
        self.started_secs = time.monotonic()
        self._traces = Traces()

    def status(self) -> int | None:
        """Return the exit status, the negative number of a signal, or None while it runs."""
        return self._poll()

    def output(self) -> str:
        return self._output_file.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        """Return the exit status once it has one.

        Raises:
            TimeoutError: it has none after a quarter of an hour.
        """
        return self._wait_until(self.status, "the job has not ended")

    def look(self) -> None:
        """Note the processes, ports and shared memory of the job as it is now."""
        if self._token is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._traces.look(psutil.Process(self.pid))

    def wait_until_gone(self) -> None:
        """Return once no process of the job is left.

        Raises:
            TimeoutError: one is left after a quarter of an hour; its guard should have ended it.
            AssertionError: a port or shared memory of a job that was looked at is left.
        """
        self.wait()
        self._wait_until(lambda: None if self.processes() else 0, "processes of the job are left")
        self._traces.check_that_nothing_is_left()

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the job, orphans included."""
        if self._token is None:
            return [] if self.status() is not None else [psutil.Process(self.pid)]
        return [process for process in psutil.process_iter() if _environment(process).get(_TOKEN) == self._token]

    def find(self, victim: Victim) -> list[psutil.Process]:
        """Return the processes that `victim` stands for: none if it has not started yet, or has ended."""
        found = self.processes()
        if victim == "group":
            return found
        if victim == "launcher":
            return [process for process in found if process.pid == self.pid]
        index = 0 if victim == "chief" else 1
        return [process for process in found if _worker_index(process) == index]

    def _wait_until(self, answer: Callable[[], int | None], problem: str) -> int:
        deadline = time.monotonic() + PATIENCE_SECS
        while (found := answer()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{problem} after {PATIENCE_SECS:.0f} s: {self.processes()}\n{self.output()[-4000:]}"
                )
            time.sleep(_LOOK_EVERY_SECS if self._token is None else 0.1)
        return found


def kill(processes: Sequence[psutil.Process]) -> bool:
    """Send SIGKILL to `processes`; return False if none of them was there any more."""
    num_killed = 0
    for process in processes:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        num_killed += 1
    return num_killed > 0


def fork(main: Callable[[], object], output_file: pathlib.Path) -> Job:
    """Run `main` in a process that is forked from this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become_job(main, output_file)
    status: list[int] = []

    def poll() -> int | None:
        if not status:
            ended, code = os.waitpid(pid, os.WNOHANG)
            status.extend([os.waitstatus_to_exitcode(code)] if ended else [])
        return status[0] if status else None

    return Job(pid, None, poll, output_file)


def spawn(arguments: Sequence[str], output_file: pathlib.Path) -> Job:
    """Run `trainer` with `arguments` as a command."""
    token = uuid.uuid4().hex
    with output_file.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from trainer.cli.app import main; main()", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), _TOKEN: token},
            start_new_session=True,
        )
    return Job(process.pid, token, process.poll, output_file)


def _become_job(main: Callable[[], object], output_file: pathlib.Path) -> None:
    """Run in the forked child and never return."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        descriptor = os.open(output_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        main()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _worker_index(process: psutil.Process) -> int | None:
    environment = _environment(process)
    if "TRAINER_HEARTBEAT_FD" not in environment:
        return None
    if "HOROVOD_RANK" in environment:
        return int(environment["HOROVOD_RANK"])
    return int(environment["TF_CONFIG"].partition('"index": ')[2].rstrip("}"))
