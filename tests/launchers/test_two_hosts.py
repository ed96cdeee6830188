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

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_obstacle() is not None, reason=find_obstacle() or "")]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    directory = tmp_path_factory.mktemp("hosts")
    (directory / "hidden").mkdir()
    with two_hosts(directory, hide=directory / "hidden") as found:
        yield found


@pytest.fixture
def hosts_to_cut(hosts: TwoHosts) -> Iterator[TwoHosts]:
    yield hosts
    hosts.mend()


def start(
    hosts: TwoHosts, log_dir: pathlib.Path, mode: str, *, workers: str | None = None, host_timeout_secs: float = 30
) -> subprocess.Popen[str]:
    workers = workers or f"{hosts.names[0]}:1,{hosts.names[1]}:2"
    command = [sys.executable, str(JOB), str(log_dir), workers, mode, "none", *hosts.ssh_options]
    environment = {**os.environ, "HOST_TIMEOUT_SECS": str(host_timeout_secs)}
    return subprocess.Popen(hosts.command_on_first(command), stdout=subprocess.PIPE, text=True, env=environment)


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
    _, alive = psutil.wait_procs(processes, timeout=600)
    assert not alive


def test_workers_run_on_both_hosts_and_their_output_comes_back(hosts: TwoHosts, tmp_path: pathlib.Path) -> None:
    job = start(hosts, tmp_path / "logs", "done")
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert all(f"[{i}] worker {i} of done" in output for i in range(3))


def test_a_worker_killed_on_the_other_host_is_named_with_it(hosts: TwoHosts, tmp_path: pathlib.Path) -> None:
    job = start(hosts, tmp_path / "logs", "wait")
    pids = pids_of_workers(job, 3)
    os.kill(pids[2], signal.SIGKILL)
    output, _ = job.communicate(timeout=600)
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
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 2
    assert "DeviceError: no worker can be started on 10.77.0.99" in output
    assert "worker 0 of done" not in output


def test_the_second_host_has_a_disk_and_a_name_of_its_own(hosts: TwoHosts, tmp_path: pathlib.Path) -> None:
    assert hosts.ssh_from_first("hostname").strip() == hosts.names[1]
    hidden = hosts.hidden / "of the first"
    hidden.touch()
    assert hosts.ssh_from_first("ls", "-A", str(hosts.hidden)) == ""
    hosts.ssh_from_first("touch", str(hosts.hidden / "of-the-second"))
    assert [path.name for path in hosts.hidden.iterdir()] == [hidden.name]
    assert [path.name for path in hosts.hidden_of_second.iterdir()] == ["of-the-second"]
    hosts.ssh_from_first("rm", str(hosts.hidden / "of-the-second"))
    hidden.unlink()


def test_a_host_that_is_cut_off_is_named_and_its_own_guards_end_its_workers(
    hosts_to_cut: TwoHosts, tmp_path: pathlib.Path
) -> None:
    job = start(hosts_to_cut, tmp_path / "logs", "wait", host_timeout_secs=3)
    pids = pids_of_workers(job, 3)
    hosts_to_cut.cut()
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 1
    name = hosts_to_cut.names[1]
    assert re.search(f"TrainingError: worker 1 on {name}, worker 2 on {name} .*did not answer for 3 s", output), output
    # With the cable still out: nobody but the far guards themselves can have ended them.
    wait_until_gone(pids)


def test_a_launcher_killed_while_the_cable_is_out_leaves_nobody_on_either_side(
    hosts_to_cut: TwoHosts, tmp_path: pathlib.Path
) -> None:
    job = start(hosts_to_cut, tmp_path / "logs", "wait", host_timeout_secs=3)
    pids = pids_of_workers(job, 3)
    ssh = {child.pid: child.pid for child in psutil.Process(job.pid).children() if child.name() == "ssh"}
    assert len(ssh) == 2
    hosts_to_cut.cut()
    job.kill()
    wait_until_gone({**pids, **ssh})
    assert job.stdout is not None
    job.stdout.close()
    job.wait()
