"""Hosts that share a directory hold it one at a time; another host is a holder of another boot."""

import pathlib
import subprocess
import sys
import threading
import time

import pytest

from trainer.system import lease
from trainer.system.lock import HeldError, Holder

# Holds the lease argv[1] as argv[2] of the host argv[3], for argv[4] seconds after its last renewal.
HOLD = """
import pathlib, sys, time
from trainer.system import lease
from trainer.system.lock import Holder

process = f"{sys.argv[3]}-boot/pid:[1]/1-1"
if sys.argv[3] == "here":
    process = Holder.of_this_process(owner="", purpose="").process
pid = int(process.rpartition("/")[2].partition("-")[0])
holder = Holder(host=sys.argv[3], pid=pid, since="noon", owner=sys.argv[2], process=process)
with lease.hold(pathlib.Path(sys.argv[1]), holder, lease_secs=float(sys.argv[4])):
    print("held", flush=True)
    sys.stdin.read()
"""


def far(owner: str, host: str = "far") -> Holder:
    return Holder(host=host, pid=1, since="noon", owner=owner, process=f"{host}-boot/pid:[1]/1-1")


def here(owner: str) -> Holder:
    return Holder.of_this_process(owner=owner, purpose="")


def start(path: pathlib.Path, owner: str, host: str, lease_secs: float) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), owner, host, str(lease_secs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_holder_on_another_host_is_seen_to_live_by_its_renewals_and_refuses(tmp_path: pathlib.Path) -> None:
    path, told = tmp_path / ".lease", []
    with (
        start(path, "first", "far", 12) as process,
        pytest.raises(HeldError, match="process 1 on far since noon"),
        lease.hold(path, here("second"), lease_secs=12, on_wait=lambda holder: told.append(str(holder))),
    ):
        pass
    assert told == ["process 1 on far since noon"]
    assert process.returncode == 0 and not path.exists()


def test_a_lost_host_keeps_the_lease_for_its_time_and_no_longer(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ".lease"
    process = start(path, "first", "far", 1.5)
    process.kill()
    process.communicate(timeout=600)
    started_secs = time.monotonic()
    with lease.hold(path, here("second"), lease_secs=1.5):
        assert time.monotonic() - started_secs >= 1.5
    assert list(tmp_path.iterdir()) == []


def test_on_one_host_nobody_waits_for_a_renewal(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ".lease"
    process = start(path, "first", "here", 3600)
    with pytest.raises(HeldError), lease.hold(path, here("second"), lease_secs=3600):
        pass
    process.kill()
    process.communicate(timeout=600)
    with lease.hold(path, here("second"), lease_secs=3600):
        pass


def test_processes_of_one_command_share_a_lease_and_the_first_removes_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ".lease"
    with lease.hold(path, here("command"), lease_secs=60):
        with lease.hold(path, far("command"), lease_secs=60):
            pass
        assert path.exists()
    assert not path.exists()


def test_a_holder_that_has_lost_its_lease_ends_without_writing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ".lease"
    process = start(path, "first", "far", 1.5)
    path.unlink()
    with process, lease.hold(path, far("second", "near"), lease_secs=3600):
        assert process.wait(timeout=600) == 1 and process.stderr is not None
        errors = process.stderr.read()
        assert "was taken by process 1 on near since noon" in errors and "ends without saving" in errors
        assert path.exists()


def test_of_many_that_find_a_lost_lease_one_takes_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / ".lease"
    process = start(path, "lost", "here", 3600)
    process.kill()
    process.communicate(timeout=600)
    lost = path.read_bytes()
    for _ in range(50):
        path.write_bytes(lost)
        assert race_for(path, num_threads=8) == (1, 7)
    assert list(tmp_path.iterdir()) == []


def race_for(path: pathlib.Path, num_threads: int) -> tuple[int, int]:
    """How many of the threads, each an owner of its own, hold the lease, and how many are refused, at the same time."""
    everyone, together = threading.Barrier(num_threads), threading.Lock()
    held, refused = [], []

    def ask(name: str) -> None:
        everyone.wait(600)
        try:
            with lease.hold(path, here(name), lease_secs=3600):
                with together:
                    held.append(name)
                everyone.wait(600)
        except HeldError as e:
            refused.append(e)
            everyone.wait(600)

    threads = [threading.Thread(target=ask, args=(f"host-{i}",), daemon=True) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(held), len(refused)
