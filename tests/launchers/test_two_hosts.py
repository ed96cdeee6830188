"""Workers on two hosts, reached by ssh: network namespaces with a name, an address and an sshd each."""

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from two_hosts import TwoHosts, find_obstacle, two_hosts

JOB = pathlib.Path(__file__).with_name("job.py")

pytestmark = pytest.mark.skipif(find_obstacle() is not None, reason=find_obstacle() or "")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    directory = tmp_path_factory.mktemp("hosts")
    (directory / "hidden").mkdir()
    with two_hosts(directory, hide=directory / "hidden") as found:
        yield found


def start(hosts: TwoHosts, log_dir: pathlib.Path, mode: str, *, workers: str | None = None) -> subprocess.Popen[str]:
    workers = workers or f"{hosts.names[0]}:1,{hosts.names[1]}:2"
    command = [sys.executable, str(JOB), str(log_dir), workers, mode, "none", *hosts.ssh_options]
    return subprocess.Popen(hosts.command_on_first(command), stdout=subprocess.PIPE, text=True)


def pids_of_workers(job: subprocess.Popen[str], num_workers: int) -> dict[int, int]:
    """Process ids by worker index; processes of all namespaces are seen from here."""
    assert job.stdout is not None
    found: dict[int, int] = {}
    while len(found) < num_workers:
        line = job.stdout.readline()
        assert line
        if match := re.match(r"\[(\d+)\] worker \d+ of \w+, process (\d+)", line):
            found[int(match[1])] = int(match[2])
    return found


def wait_until_gone(pids: dict[int, int]) -> None:
    processes = [psutil.Process(pid) for pid in pids.values() if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=40)
    assert not alive


def test_workers_run_on_both_hosts_and_their_output_comes_back(hosts: TwoHosts, tmp_path: pathlib.Path) -> None:
    job = start(hosts, tmp_path / "logs", "done")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert all(f"[{i}] worker {i} of done" in output for i in range(3))


def test_a_worker_killed_on_the_other_host_is_named_with_it(hosts: TwoHosts, tmp_path: pathlib.Path) -> None:
    job = start(hosts, tmp_path / "logs", "wait")
    pids = pids_of_workers(job, 3)
    os.kill(pids[2], signal.SIGKILL)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 1
    assert f"worker 2 on {hosts.names[1]} was ended by signal 9" in output
    wait_until_gone(pids)


def test_a_launcher_killed_with_9_leaves_nobody_on_the_other_host(hosts: TwoHosts, tmp_path: pathlib.Path) -> None:
    job = start(hosts, tmp_path / "logs", "save")
    pids = pids_of_workers(job, 3)
    job.kill()
    wait_until_gone(pids)
    assert job.stdout is not None
    job.stdout.close()
    job.wait()


def test_a_host_without_an_answer_is_a_clear_error_before_the_start(hosts: TwoHosts, tmp_path: pathlib.Path) -> None:
    job = start(hosts, tmp_path / "logs", "done", workers=f"{hosts.names[0]}:1,10.77.0.99:1")
    output, _ = job.communicate(timeout=90)
    assert job.returncode == 2
    assert "DeviceError: no worker can be started on 10.77.0.99" in output
    assert "worker 0 of done" not in output
