"""Start two commands at the same moment on one run directory: one trains, and the other says why it does not.

They run on one host; or on two, each in namespaces of its own for the network, the host's name, processes and mounts,
with the run directory shared. Neither sees the other's processes. `leases` is that with a file system that keeps no
locks, where the lease alone keeps one of them out.
"""

import ctypes
import errno
import os
import pathlib
import re
import shutil
import socket
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from tests.chaos import jobs
from tests.chaos.evidence import difference_of_points, first_difference, read_evidence
from tests.chaos.trial import Reference, launch_arguments, run_command

PLACES: Final = ("one host", "two hosts", "leases")
# linux/sched.h and linux/mount.h.
_NEW_MOUNTS, _NEW_NAME, _NEW_PROCESSES, _NEW_NETWORK = 0x00020000, 0x04000000, 0x20000000, 0x40000000
_RECURSIVE, _PRIVATE = 0x4000, 1 << 18
# Of the leases, instead of a minute: a run of seconds is over before such a lease is renewed.
_LEASE_SECS = 6.0
_REFUSED = re.compile(r"error: .* is being trained by process (\d+) on (\S+) since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


def can_have_hosts() -> bool:
    """Return whether this process may make namespaces."""
    pid = os.fork()
    if pid == 0:
        try:
            _enter_host("try")
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def collide(reference: Reference, dataset: pathlib.Path, work: pathlib.Path, place: str) -> dict[str, Any]:
    """Let two commands collide in the new directory `work`, removed if all was as it must be; return the outcome."""
    started_secs = time.monotonic()
    work.mkdir()
    run_dir = work / "run"
    arguments = launch_arguments(reference.strategy, dataset, run_dir)
    read_end, write_end = os.pipe()
    pair = [
        jobs.fork(lambda i=i: _start(arguments, read_end, write_end, place, i), work / f"command-{i}.txt")  # type: ignore[misc]
        for i in range(2)
    ]
    os.close(read_end)
    time.sleep(0.1)  # until both wait
    os.close(write_end)
    statuses = [job.wait() for job in pair]
    outcome = _judge(reference, run_dir, statuses, [job.output() for job in pair], [job.pid for job in pair], place)
    if outcome == "one trained":
        shutil.rmtree(work)
    return {
        "kind": "collision",
        "place": place,
        "outcome": outcome,
        "winner": statuses.index(0) if 0 in statuses else None,
        "secs": round(time.monotonic() - started_secs, 1),
    }


def _judge(
    reference: Reference, run_dir: pathlib.Path, statuses: list[int], outputs: list[str], pids: list[int], place: str
) -> str:
    """Return "one trained", or what was wrong."""
    told = "\n".join(f"command {i}, status {statuses[i]}: {outputs[i][-1500:]}" for i in range(2))
    if sorted(statuses) != [0, 2] or "Traceback" in "".join(outputs):
        return f"the statuses are not 0 and 2: {told}"
    winner = statuses.index(0)
    refused = _REFUSED.search(outputs[1 - winner])
    holder = (str(pids[winner]), socket.gethostname()) if place == "one host" else ("1", f"host-{winner}")
    if refused is None or refused.groups() != holder:
        return f"the second does not name process {holder[0]} on {holder[1]}: {told}"
    evidence = read_evidence(run_dir)
    difference = first_difference(evidence, reference.evidence) or difference_of_points(evidence, reference.evidence)
    return f"the run is not whole: {difference}" if difference else "one trained"


def _start(arguments: Sequence[str], read_end: int, write_end: int, place: str, index: int) -> None:
    os.close(write_end)
    if place != "one host":
        _enter_host(f"host-{index}")
    if place == "leases":
        _forget_locks()
    os.read(read_end, 1)  # returns in both when the harness closes its end
    run_command(list(arguments))


def _forget_locks() -> None:
    from trainer.system import lease, lock

    def without_locks(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    lock.fcntl.flock = without_locks  # type: ignore[assignment]
    lease.hold.__wrapped__.__kwdefaults__["lease_secs"] = _LEASE_SECS  # type: ignore[attr-defined]


def _enter_host(name: str) -> None:
    """Go on as the first process of another host; the process before waits for it and ends as it does.

    Raises:
        OSError: namespaces are not allowed here.
    """
    _check(_libc().unshare(_NEW_MOUNTS | _NEW_NAME | _NEW_PROCESSES | _NEW_NETWORK))
    socket.sethostname(name)
    _check(_libc().mount(b"none", b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None))
    pid = os.fork()
    if pid:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    _check(_libc().mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None))


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
