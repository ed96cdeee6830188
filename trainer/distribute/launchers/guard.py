"""The process between the launcher and one worker: starts it, and ends it when nobody is there to watch it.

    launcher --(pipe, or ssh)--> guard --> worker

Standard input is the line of life: each line is an order in JSON, and its end, which the kernel or sshd brings about
when the launcher dies in whatever way, ends the worker. The output of the worker is the guard's standard output.
Standard error carries reports in JSON, a line each, and nothing of the worker.

    guard:     {"report": "ready", "host": ..., "address": ..., "interface": ..., "port": ..., "versions": {...}}
    launcher:  {"order": "start", "command": [...], "environment": {...}}
    guard:     {"report": "started", "pid": ...}
    launcher:  {"order": "stop", "grace_secs": 30}    SIGTERM, then SIGKILL after so long
    guard:     {"report": "hung", "counter": ..., "for_secs": ...}
    guard:     {"report": "ended", "status": ..., "signal": ...}

The exit status is that of the worker, or 128 + the signal that ended it. Needs nothing but the standard library and
psutil, so that it is there within a fraction of a second.
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from trainer.distribute.launchers import heartbeat, versions

# What a worker may take to save after the launcher has died.
_ORPHAN_GRACE_SECS = 20.0
_PR_SET_PDEATHSIG = 1


class Guard:
    """One worker from its start to its end. `report` takes the reports."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._pid = 0
        self._pulse = heartbeat.Heartbeat.create()
        self._kill_at: float | None = None
        self._stall = heartbeat.Stall(timeout_secs=None)

    def start(self, command: list[str], environment: dict[str, str], stall_timeout_secs: float | None) -> None:
        """Starts the worker in a process group of its own."""
        self._stall = heartbeat.Stall(timeout_secs=stall_timeout_secs)
        environment = {**environment, heartbeat.VARIABLE: str(self._pulse.fd), "PYTHONUNBUFFERED": "1"}
        guard_pid = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _become_worker(command, environment, guard_pid, keep_fd=self._pulse.fd)
        self._report({"report": "started", "pid": self._pid})

    def stop(self, grace_secs: float) -> None:
        """Asks the worker to save and end; kills it after `grace_secs`. A second call can only shorten the time."""
        if not self._pid:
            raise SystemExit(0)
        kill_at = time.monotonic() + grace_secs
        if self._kill_at is None:
            _signal_group(self._pid, signal.SIGTERM)
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def look(self) -> int | None:
        """Does what is due; the exit status once the worker has ended."""
        if not self._pid:
            return None
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            # What the worker itself left in its group ends with it.
            _signal_group(self._pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(status)
            self._report({"report": "ended", "status": max(code, 0), "signal": max(-code, 0)})
            return code if code >= 0 else 128 - code
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            _signal_group(self._pid, signal.SIGKILL)
        elif self._kill_at is None and (for_secs := self._stall.seen(self._pulse.counter)) is not None:
            self._report({"report": "hung", "counter": self._pulse.counter, "for_secs": for_secs, **self._state()})
            # The worker prints the stacks of all of its threads, if it still can.
            _signal_process(self._pid, heartbeat.STACK_SIGNAL)
        return None

    def _state(self) -> dict[str, str]:
        try:
            return {"state": psutil.Process(self._pid).status()}
        except psutil.Error:
            return {"state": "unknown"}


def main() -> int:
    """Runs the guard on this process's standard streams."""
    # Ctrl-C is the launcher's to answer; a hang-up shows as the end of standard input.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    orphaned = [False]
    signal.signal(signal.SIGTERM, lambda *_: orphaned.__setitem__(0, True))
    wakeup, wake = os.pipe()
    for fd in (wakeup, wake):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    guard = Guard(_write_report)
    _write_report({"report": "ready", **_describe_host()})
    orders = _Orders()
    while True:
        watched = [wakeup] if orders.ended else [wakeup, orders.fd]
        ready, _, _ = select.select(watched, [], [], 0.5)
        if wakeup in ready:
            os.read(wakeup, 4096)
        if orders.fd in ready:
            for order in orders.read():
                _obey(guard, order)
        if orders.ended or orphaned[0]:
            guard.stop(_ORPHAN_GRACE_SECS)
        status = guard.look()
        if status is not None:
            return status


class _Orders:
    """Lines of JSON from standard input, whole ones only."""

    def __init__(self) -> None:
        self.fd = sys.stdin.fileno()
        self.ended = False
        self._rest = b""

    def read(self) -> list[dict[str, Any]]:
        content = os.read(self.fd, 65536)
        if not content:
            self.ended = True
            return []
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [json.loads(line) for line in lines if line]


def _obey(guard: Guard, order: dict[str, Any]) -> None:
    if order["order"] == "start":
        guard.start(order["command"], {**os.environ, **order["environment"]}, order.get("stall_timeout_secs"))
    elif order["order"] == "stop":
        guard.stop(order["grace_secs"])


def _become_worker(command: list[str], environment: dict[str, str], guard_pid: int, keep_fd: int) -> None:
    """Runs in the forked child and never returns."""
    try:
        os.setpgid(0, 0)
        # The kernel ends the worker when the guard is killed. It may have been, just now.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:
            os._exit(1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(1, 2)
        os.set_inheritable(keep_fd, True)
        os.execvpe(command[0], command, environment)  # noqa: S606 -- the launcher's own command, no shell
    except OSError as e:
        os.write(1, f"{command[0]} cannot be started: {e.strerror}\n".encode())
    finally:
        os._exit(127)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        # Not yet a group of its own, or gone.
        _signal_process(pid, number)


def _signal_process(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _describe_host() -> dict[str, Any]:
    """What the launcher needs to know of this end: where others reach it, and what is installed."""
    launcher_address, address = _addresses()
    interfaces = psutil.net_if_addrs()
    names = [name for name, found in interfaces.items() if any(a.address.partition("%")[0] == address for a in found)]
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    return {
        "host": socket.gethostname(),
        "address": address,
        "interface": names[0] if names else "lo",
        "port": port,
        "launcher_address": launcher_address,
        "time": time.time(),
        "versions": versions.installed_versions(),
    }


def _addresses() -> tuple[str, str]:
    """Where the launcher is for this host, and this host for the others."""
    if len(sys.argv) > 1:  # started by the launcher itself, on its own host, which others reach by this address
        return sys.argv[1], sys.argv[1]
    # "client-address client-port server-address server-port": by this address the launcher has reached this host.
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return (connection[0], connection[2]) if len(connection) == 4 else ("127.0.0.1", "127.0.0.1")


def _write_report(report: dict[str, Any]) -> None:
    try:
        os.write(2, json.dumps(report).encode() + b"\n")
    except BrokenPipeError:
        return  # the launcher is gone; the end of standard input says so too


if __name__ == "__main__":
    sys.exit(main())
