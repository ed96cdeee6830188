"""The launcher's promises, with real processes: all or none are there, the right one is named, nobody is left."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from trainer.distribute.launchers import guard, waiting
from trainer.distribute.launchers.hosts import assign_slots, parse_hosts
from trainer.distribute.launchers.supervisor import Supervisor, SupervisorOptions
from trainer.distribute.launchers.worker import Ended
from trainer.errors import DeviceError, OutOfMemoryRestart
from trainer.system.stop_signals import STOP_SIGNALS

pytestmark = pytest.mark.slow

JOB = pathlib.Path(__file__).with_name("job.py")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Job:
    """A launcher that runs in the background, with what it has printed so far."""

    def __init__(self, log_dir: pathlib.Path, num_workers: int, mode: str, *more: str) -> None:
        self.log_dir = log_dir
        self.process = subprocess.Popen(
            [sys.executable, str(JOB), str(log_dir), str(num_workers), mode, *more],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            # What happens to the launcher must not happen to the tests.
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.seen: set[psutil.Process] = set()

    def read_until_all_run(self, num_workers: int) -> list[int]:
        """The process ids of the workers, by their index."""
        assert self.process.stdout is not None
        pids: dict[int, int] = {}
        while len(pids) < num_workers:
            line = self.process.stdout.readline()
            assert line, self.lines
            self.lines.append(line.rstrip("\n"))
            if found := re.fullmatch(r"\[(\d+)\] worker \d+ of \w+, process (\d+)", self.lines[-1]):
                pids[int(found[1])] = int(found[2])
        self.seen |= {*psutil.Process(self.process.pid).children(recursive=True)}
        return [pids[i] for i in range(num_workers)]

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=600)
        return "\n".join([*self.lines, output])

    def wait_until_nobody_is_left(self) -> None:
        """Fails where a process that the launcher had started is still there half a minute later."""
        _, alive = psutil.wait_procs(self.seen, timeout=600)
        assert not alive


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[type[Job]]:
    jobs: list[Job] = []

    def start_job(num_workers: int, mode: str, *more: str) -> Job:
        jobs.append(Job(tmp_path / "logs", num_workers, mode, *more))
        return jobs[-1]

    yield start_job
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
        if job.process.stdout is not None:
            job.process.stdout.close()
        job.process.wait()


def test_the_output_of_every_worker_is_prefixed_and_kept(start) -> None:
    job = start(2, "done")
    output = job.finish()
    assert job.process.returncode == 0
    for i in range(2):
        assert f"[{i}] worker {i} of done" in output
        assert f"[{i}] to standard error" in output
        kept = (job.log_dir / f"worker-0000{i}.log").read_text()
        assert kept.splitlines() == [line[4:] for line in output.splitlines() if line.startswith(f"[{i}] ")]


def test_the_worker_that_fails_is_named_with_its_last_lines_and_the_others_are_ended(start) -> None:
    job = start(3, "fail")
    job.read_until_all_run(3)
    output = job.finish()
    assert job.process.returncode == 1
    assert "TrainingError: worker 1 on this machine exited with status 3" in output
    assert "    the reason of worker 1" in output
    job.wait_until_nobody_is_left()


def test_a_worker_that_lacked_memory_is_the_cause_and_asks_for_a_restart(start) -> None:
    job = start(2, "lack_memory")
    output = job.finish()
    assert job.process.returncode == OutOfMemoryRestart.exit_status
    assert "OutOfMemoryRestart: worker 1 on this machine exited with status 76" in output
    job.wait_until_nobody_is_left()


@pytest.mark.parametrize(("kills", "was_oom_killed"), [([4, 5], True), ([4, 4], False)])
def test_a_guard_tells_whether_the_kernel_has_ended_its_worker_for_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, kills: list[int], was_oom_killed: bool
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(guard, "count_oom_kills", lambda: kills.pop(0))
    watched = guard.Guard(reports.append)
    watched.start(["/bin/sh", "-c", "kill -9 $$"], {}, None)
    while watched.look() is None:
        time.sleep(0.01)
    assert reports[-1] == {"report": "ended", "status": 0, "signal": 9, "was_oom_killed": was_oom_killed}
    words = str(Ended(status=0, signal=9, at=0.0, was_oom_killed=was_oom_killed))
    assert ("by the kernel for lack of memory" in words) is was_oom_killed


@pytest.mark.parametrize("victim", range(3))
def test_a_worker_killed_with_9_is_named_and_nobody_is_left(start, victim: int) -> None:
    job = start(3, "wait")
    pids = job.read_until_all_run(3)
    time.sleep(random.Random(victim).uniform(0, 0.3))
    os.kill(pids[victim], signal.SIGKILL)
    output = job.finish()
    assert job.process.returncode == 1
    assert f"worker {victim} on this machine was ended by signal 9" in output
    job.wait_until_nobody_is_left()


def test_a_guard_killed_with_9_takes_its_worker_with_it_and_is_named(start) -> None:
    job = start(2, "wait")
    pids = job.read_until_all_run(2)
    os.kill(psutil.Process(pids[1]).ppid(), signal.SIGKILL)
    output = job.finish()
    assert "worker 1 on this machine was ended by signal 9" in output
    job.wait_until_nobody_is_left()


def test_a_launcher_killed_with_9_leaves_no_process(start) -> None:
    job = start(3, "save")
    job.read_until_all_run(3)
    assert len(job.seen) == 6  # three guards and three workers
    job.process.kill()
    job.wait_until_nobody_is_left()


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_stopped_job_lets_every_worker_save(start, number: int) -> None:
    job = start(2, "save")
    job.read_until_all_run(2)
    job.process.send_signal(number)
    output = job.finish()
    assert job.process.returncode == 75, output
    assert "StoppedOnRequest" in output
    job.wait_until_nobody_is_left()


def test_a_second_interrupt_does_not_wait_for_workers_that_do_not_end(start) -> None:
    job = start(2, "hang")
    for pid in (pids := job.read_until_all_run(2)):
        os.kill(pid, signal.SIGSTOP)  # a stopped process does not see SIGTERM
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
    job.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert all(psutil.pid_exists(pid) for pid in pids)
    job.process.send_signal(signal.SIGINT)
    output = job.finish()
    assert job.process.returncode == 1
    assert "stopped before worker 0 on this machine, worker 1 on this machine had saved" in output
    job.wait_until_nobody_is_left()


def test_a_worker_that_hangs_is_named_with_its_stack(start) -> None:
    job = start(3, "hang", "1.0")
    job.read_until_all_run(3)
    output = job.finish()
    assert job.process.returncode == 1
    assert "TrainingError: worker 1 on this machine hangs" in output
    assert "in wait_in_vain" in output.partition("TrainingError")[2]
    job.wait_until_nobody_is_left()


def test_a_paused_launcher_goes_on_with_its_workers_on_this_machine(start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z: only a host that cannot be reached otherwise is given up for its silence."""
    monkeypatch.setenv("HOST_TIMEOUT_SECS", "1")
    job = start(2, "briefly")
    job.read_until_all_run(2)
    job.process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    job.process.send_signal(signal.SIGCONT)
    output = job.finish()
    assert job.process.returncode == 0, output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_stopped_before_its_workers_run_says_so_and_leaves_nobody(start, number: int) -> None:
    job = start(2, "save")
    children: list[psutil.Process] = []
    while len(children) < 2:
        children = psutil.Process(job.process.pid).children()
    job.seen |= {*children}
    job.process.send_signal(number)
    output = job.finish()
    assert job.process.returncode == 75, output
    assert "StoppedOnRequest: stopped on request" in output
    job.wait_until_nobody_is_left()


def test_a_host_that_does_not_answer_is_named_while_the_launcher_waits_and_given_up_in_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(waiting, "TELL_AFTER_SECS", 0.2)
    lines: list[str] = []
    options = SupervisorOptions(start_timeout_secs=1.0)  # this limit is tested
    slots = assign_slots(parse_hosts("gone.invalid:2"))
    supervisor = Supervisor(slots, log_dir=tmp_path / "logs", show=lines.append, options=options)
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r"gone\.invalid did not answer within 1 s"):
        supervisor.run(["never"], lambda ready: [])
    assert lines == ["waiting for gone.invalid to answer, up to 1 s"]
    assert time.monotonic() - start < 500, "and not as long as that ssh would have taken"
