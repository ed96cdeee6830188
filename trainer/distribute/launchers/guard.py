"""The process between the launcher and one worker: it starts the worker, and ends it when the launcher is gone.

    launcher --(pipe, or ssh)--> guard --> worker

Standard input carries orders in JSON, a line each. The kernel or sshd closes it when the launcher dies, however it
dies, and that ends the worker. A cut cable closes nothing, so a guard with --lease-secs also ends its worker when the
launcher has been silent for so long. The output of the worker is the guard's standard output.
Standard error carries reports in JSON, a line each, and nothing of the worker.

    guard:     {"report": "ready", "host": ..., "address": ..., "interface": ..., "port": ..., "versions": {...}}
    launcher:  {"order": "start", "command": [...], "environment": {...}, "has_channel": false}
    guard:     {"report": "started", "pid": ...}
    launcher:  {"order": "answer"}                    renews the lease
    guard:     {"report": "answer"}
    launcher:  {"order": "tell", "message": {...}}    to the worker, where it has a channel
    guard:     {"report": "said", "message": {...}}   by the worker
    launcher:  {"order": "stop", "grace_secs": 30}    SIGTERM, then SIGKILL after so long
    guard:     {"report": "hung", "counter": ..., "for_secs": ...}
    guard:     {"report": "ended", "status": ..., "signal": ..., "was_oom_killed": false}

The exit status is that of the worker, or 128 + the signal that ended it. Needs nothing but the standard library and
psutil, so that it is there within a fraction of a second.
"""

import argparse
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

from trainer.distribute.launchers import channel, heartbeat, versions
from trainer.distribute.launchers.lease import LOOK_EVERY_SECS, Lease
from trainer.system.oom_kills import count_oom_kills

# How long a worker may take to save after the launcher has died.
_ORPHAN_GRACE_SECS = 20.0
_PR_SET_PDEATHSIG = 1
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Guard:
    """A guard of one worker, from its start to its end; `report` is called with each report."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._pid = 0
        self._pulse = heartbeat.Heartbeat.create()
        self._kill_at: float | None = None
        self._stall = heartbeat.Stall(timeout_secs=None)
        self._oom_kills_before = 0
        self.channel: channel.Channel | None = None

    def start(
        self,
        command: list[str],
        environment: dict[str, str],
        stall_timeout_secs: float | None,
        *,
        has_channel: bool = False,
    ) -> None:
        """Start the worker in a process group of its own."""
        self._stall = heartbeat.Stall(timeout_secs=stall_timeout_secs)
        environment = {**environment, **own_variables(str(self._pulse.fd))}
        kept_fds = [self._pulse.fd]
        self.channel, theirs = channel.Channel.pair() if has_channel else (None, None)
        if theirs is not None:
            environment[channel.VARIABLE] = str(theirs.fileno())
            kept_fds.append(theirs.fileno())
        guard_pid = os.getpid()
        self._oom_kills_before = count_oom_kills()
        self._pid = os.fork()
        if self._pid == 0:
            _become_worker(command, environment, guard_pid, kept_fds)
        if theirs is not None:
            theirs.close()
        self._report({"report": "started", "pid": self._pid})

    def answer(self) -> None:
        """Tell the launcher that this host is still reachable."""
        self._report({"report": "answer"})

    def tell(self, message: channel.Message) -> None:
        """Pass a message of the launcher on to the worker."""
        if self.channel is not None:
            self.channel.say(message)

    def listen(self) -> None:
        """Pass the messages of the worker on to the launcher."""
        for message in self.channel.hear() if self.channel is not None else []:
            self._report({"report": "said", "message": message})

    def stop(self, grace_secs: float) -> None:
        """Ask the worker to save and exit; kill it after `grace_secs`. A second call can only shorten the time."""
        if not self._pid:
            raise SystemExit(0)
        kill_at = time.monotonic() + grace_secs
        if self._kill_at is None:
            _signal_group(self._pid, signal.SIGTERM)
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def look(self) -> int | None:
        """Do what is due; return the exit status once the worker has ended, and None before."""
        if not self._pid:
            return None
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            # End the processes that the worker has left in its process group.
            _signal_group(self._pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(status)
            is_oom = code == -signal.SIGKILL and self._kill_at is None and count_oom_kills() > self._oom_kills_before
            report = {"status": max(code, 0), "signal": max(-code, 0), "was_oom_killed": is_oom}
            self._report({"report": "ended", **report})
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


def own_variables(heartbeat_fd: str) -> dict[str, str]:
    """Return the variables that a guard adds to the environment of its worker."""
    return {heartbeat.VARIABLE: heartbeat_fd, "PYTHONUNBUFFERED": "1"}


def main() -> int:
    """Run the guard on this process's standard streams."""
    parser = argparse.ArgumentParser()
    parser.add_argument("own_address", nargs="?", help="of this host, where the launcher itself runs on it")
    parser.add_argument("--lease-secs", type=float, help="end the worker when the launcher is silent for so long")
    arguments = parser.parse_args()
    # The launcher handles what asks for a stop; a hang-up closes standard input.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    orphaned = [False]
    signal.signal(signal.SIGTERM, lambda *_: orphaned.__setitem__(0, True))
    wakeup, wake = os.pipe()
    for fd in (wakeup, wake):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    guard = Guard(_write_report)
    with _reserve_port(addresses := _find_addresses(arguments.own_address)) as port:
        _write_report({"report": "ready", **_describe_host(*addresses, port.getsockname()[1])})
        return _keep_watch(guard, wakeup, orphaned, Lease(arguments.lease_secs))


def _keep_watch(guard: Guard, wakeup: int, orphaned: list[bool], lease: Lease) -> int:
    """Watch the worker, and return its exit status once it has ended."""
    orders = _Orders()
    while True:
        watched = [wakeup] if orders.ended else [wakeup, orders.fd]
        if guard.channel is not None and guard.channel.is_open:
            watched.append(guard.channel.fileno())
        ready, _, _ = select.select(watched, [], [], LOOK_EVERY_SECS)
        if wakeup in ready:
            os.read(wakeup, 4096)
        if orders.fd in ready:
            lease.renew()
            for order in orders.read():
                _obey(guard, order)
        guard.listen()
        if orders.ended or orphaned[0] or lease.has_ended():
            guard.stop(_ORPHAN_GRACE_SECS)
        status = guard.look()
        if status is not None:
            return status


class _Orders:
    """A reader of orders from standard input, one JSON object per line."""

    def __init__(self) -> None:
        self.fd = sys.stdin.fileno()
        self.ended = False
        self._rest = b""

    def read(self) -> list[dict[str, Any]]:
        """Return the orders of the complete lines that have arrived."""
        content = os.read(self.fd, 65536)
        if not content:
            self.ended = True
            return []
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [json.loads(line) for line in lines if line]


def _obey(guard: Guard, order: dict[str, Any]) -> None:
    if order["order"] == "start":
        guard.start(
            order["command"],
            {**os.environ, **order["environment"]},
            order.get("stall_timeout_secs"),
            has_channel=order.get("has_channel", False),
        )
    elif order["order"] == "answer":
        guard.answer()
    elif order["order"] == "tell":
        guard.tell(order["message"])
    elif order["order"] == "stop":
        guard.stop(order["grace_secs"])


def _become_worker(command: list[str], environment: dict[str, str], guard_pid: int, kept_fds: list[int]) -> None:
    """Replace the forked child by the worker; never returns."""
    try:
        os.setpgid(0, 0)
        # The kernel ends the worker when the guard is killed, which may have happened just now.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:
            os._exit(1)
        for number in (*_IGNORED, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(1, 2)
        for fd in kept_fds:
            os.set_inheritable(fd, True)
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


def _find_addresses(own_address: str | None) -> tuple[str, str]:
    """Return the address of the launcher for this host, and that of this host for the others."""
    if own_address is not None:
        return own_address, own_address
    # "client-address client-port server-address server-port": by this address the launcher has reached this host.
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return (connection[0], connection[2]) if len(connection) == 4 else ("127.0.0.1", "127.0.0.1")


def _reserve_port(addresses: tuple[str, str]) -> socket.socket:
    """Return a bound socket that does not listen: its port is given to no other process, and the worker may take it."""
    reserved = socket.socket(socket.AF_INET6 if ":" in addresses[1] else socket.AF_INET)
    # Linux lets two sockets share a port that both set this for, while no more than one of them listens.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((addresses[1], 0))
    return reserved


def _describe_host(launcher_address: str, address: str, port: int) -> dict[str, Any]:
    """Return the addresses of this host and the versions installed on it, for the launcher."""
    interfaces = psutil.net_if_addrs()
    names = [name for name, found in interfaces.items() if any(a.address.partition("%")[0] == address for a in found)]
    return {
        "host": socket.gethostname(),
        "address": address,
        "interface": names[0] if names else "lo",
        "port": port,
        "launcher_address": launcher_address,
        "time": time.time(),
        "versions": versions.installed_versions(),
    }


def _write_report(report: dict[str, Any]) -> None:
    try:
        os.write(2, json.dumps(report).encode() + b"\n")
    except BrokenPipeError:
        return  # the launcher is gone; the end of standard input says so too


if __name__ == "__main__":
    sys.exit(main())
