"""A launcher process for the tests: python job.py LOG_DIR HOSTS MODE [STALL_TIMEOUT_SECS [SSH_OPTION ...]].

HOSTS is a number of workers on this machine, or name:slots,name:slots. HOST_TIMEOUT_SECS may be in the environment.

Its workers run this file again as: python job.py worker MODE. TensorFlow plays no part.
"""

import os
import pathlib
import signal
import sys
import time

from trainer.distribute.launchers import heartbeat
from trainer.distribute.launchers.hosts import Host, assign_slots, parse_hosts
from trainer.distribute.launchers.supervisor import Supervisor, SupervisorOptions
from trainer.errors import OutOfMemoryRestart, TrainerError


def work(mode: str) -> int:
    """One worker: worker 1 does what `mode` says, the others wait for ever, or end well after `done`."""
    index = os.environ["INDEX"]
    if mode == "save":
        # As training does: SIGTERM saves, and 75 says so. Before the line for which the tests wait.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print(f"worker {index} of {mode}, process {os.getpid()}", flush=True)
    if mode == "done":
        print("to standard error", file=sys.stderr)
        return 0
    pulse = heartbeat.of_this_worker()
    if mode == "fail" and index == "1":
        print("the reason of worker 1", flush=True)
        return 3
    if mode == "lack_memory" and index == "1":
        return OutOfMemoryRestart.exit_status
    for _ in range(500 if mode == "briefly" else 360_000):
        time.sleep(0.01)
        if pulse is not None and not (mode == "hang" and index == "1" and pulse.counter >= 3):
            pulse.beat()
        elif mode == "hang":
            wait_in_vain()
    return 0 if mode == "briefly" else 1


def wait_in_vain() -> None:
    time.sleep(3600)


def launch(log_dir: str, hosts: str, mode: str, stall_timeout_secs: float | None, ssh_options: list[str]) -> int:
    supervisor = Supervisor(
        assign_slots([Host(None, int(hosts))] if hosts.isdecimal() else parse_hosts(hosts)),
        log_dir=pathlib.Path(log_dir),
        show=lambda line: print(line, flush=True),
        options=SupervisorOptions(
            stop_grace_secs=5,
            failure_grace_secs=0.5,
            stall_timeout_secs=stall_timeout_secs,
            start_timeout_secs=600,
            host_timeout_secs=float(os.environ.get("HOST_TIMEOUT_SECS", "30")),
            ssh_options=ssh_options,
        ),
    )
    try:
        supervisor.run(
            [sys.executable, __file__, "worker", mode],
            lambda ready: [{"INDEX": str(i)} for i in range(len(ready))],
        )
    except TrainerError as e:
        print(f"{type(e).__name__}: {e}", flush=True)
        return e.exit_status
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        sys.exit(work(sys.argv[2]))
    timeout = float(sys.argv[4]) if len(sys.argv) > 4 and sys.argv[4] != "none" else None
    sys.exit(launch(sys.argv[1], sys.argv[2], sys.argv[3], timeout, sys.argv[5:]))
