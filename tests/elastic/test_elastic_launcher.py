"""The launcher of elastic jobs, with real processes that only count: who takes part, who is replaced, how it ends."""

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.horovod]

JOB = pathlib.Path(__file__).with_name("counting_job.py")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Job:
    """A launcher in the background, read line by line."""

    def __init__(self, directory: pathlib.Path, hosts: str, *arguments: str) -> None:
        self.directory = directory
        directory.mkdir()
        self.list_hosts(hosts)
        self.process = subprocess.Popen(
            [sys.executable, str(JOB), str(directory), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            # What happens to the launcher must not happen to the tests.
            start_new_session=True,
        )
        self.output = ""
        self.seen: set[psutil.Process] = set()

    def list_hosts(self, hosts: str) -> None:
        new = self.directory / "hosts.new"
        new.write_text(hosts.replace(" ", "\n") + "\n")
        new.rename(self.directory / "hosts")

    def read_until(self, pattern: str, *, times: int = 1) -> re.Match[str]:
        """Returns the last of so many lines with `pattern` that come from now on."""
        assert self.process.stdout is not None
        while times:
            line = self.process.stdout.readline()
            assert line, self.output
            self.output += line
            if found := re.search(pattern, line):
                times -= 1
        self.seen |= {*psutil.Process(self.process.pid).children(recursive=True)}
        assert found is not None
        return found

    def pid_of(self, generation: int, rank: int) -> int:
        return int((self.directory / f"pid-{generation}-{rank}").read_text())

    def finish(self) -> str:
        (self.directory / "finish").touch()
        return self.wait()

    def wait(self) -> str:
        output, _ = self.process.communicate(timeout=600)
        self.output += output
        _, alive = psutil.wait_procs(self.seen, timeout=600)
        assert not alive
        return self.output


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[type[Job]]:
    jobs: list[Job] = []

    def start_job(hosts: str, *arguments: str) -> Job:
        jobs.append(Job(tmp_path / "job", hosts, *arguments))
        return jobs[-1]

    yield start_job
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
        if job.process.stdout is not None:
            job.process.stdout.close()
        job.process.wait()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_others_go_on_from_their_step_when_a_worker_is_killed(start, victim: int) -> None:
    job = start("localhost:3", "1", "3", "count")
    job.read_until(r"generation 1: rank . of 3 from 0", times=3)
    os.kill(job.pid_of(1, victim), signal.SIGKILL)
    job.read_until(r"elastic: worker . on localhost was ended by signal 9")
    step = int(job.read_until(r"the job goes on with 2 workers from step (\d+)")[1])
    job.read_until(rf"generation 2: rank . of 2 from {step}", times=2)
    job.finish()
    assert job.process.returncode == 0


def test_a_new_host_joins_and_one_that_is_no_longer_listed_is_let_go_between_two_steps(start) -> None:
    job = start("localhost:1", "1", "3", "count")
    job.read_until(r"generation 1: rank 0 of 1 from 0")
    job.list_hosts("localhost:1 127.0.0.1:1")
    job.read_until(r"worker 1 on 127.0.0.1 is ready to join")
    step = int(job.read_until(r"the job goes on with 2 workers from step (\d+)")[1])
    # The old worker has the state: it stays the chief.
    assert job.pid_of(1, 0) == int(job.read_until(rf"generation 2: rank 0 of 2 from {step}") and job.pid_of(2, 0))
    job.list_hosts("127.0.0.1:1")
    job.read_until(r"worker 0 on localhost is let go: its host is no longer listed")
    job.read_until(r"generation 3: rank 0 of 1")
    assert job.pid_of(3, 0) == job.pid_of(2, 1)
    job.finish()
    assert job.process.returncode == 0


def test_no_more_than_the_most_are_started_and_a_spare_host_takes_the_place_of_a_lost_worker(start) -> None:
    job = start("localhost:1 127.0.0.1:1", "1", "1", "count")
    job.read_until(r"generation 1: rank 0 of 1 from 0")
    os.kill(job.pid_of(1, 0), signal.SIGKILL)
    job.read_until(r"generation 2: rank 0 of 1 from 0")
    output = job.finish()
    assert job.process.returncode == 0
    assert "worker on 127.0.0.1" in output and "worker 2" not in output


def test_only_a_worker_that_sees_the_run_directory_may_become_the_chief(start) -> None:
    job = start("localhost:2", "1", "2", "blind")
    job.read_until(r"generation 1: rank . of 2 from 0", times=2)
    os.kill(job.pid_of(1, 0), signal.SIGKILL)
    output = job.wait()
    assert job.process.returncode == 1
    assert "TrainingError: no worker is left that sees the run directory" in output
    assert "the same command goes on from the last checkpoint on a host that has it" in output


def test_a_host_that_has_lost_a_worker_gets_another_one_after_a_while(start) -> None:
    job = start("localhost:2", "2", "2", "count", "60", "1")
    job.read_until(r"generation 1: rank . of 2 from 0", times=2)
    os.kill(job.pid_of(1, 1), signal.SIGKILL)
    job.read_until(r"generation 2: rank . of 2", times=2)
    assert job.pid_of(2, 0) == job.pid_of(1, 0)
    job.finish()
    assert job.process.returncode == 0


def test_fewer_than_the_least_for_too_long_is_a_clear_end_with_everything_saved(start) -> None:
    job = start("localhost:2", "2", "2", "count", "1")
    job.read_until(r"generation 1: rank . of 2 from 0", times=2)
    os.kill(job.pid_of(1, 0), signal.SIGKILL)
    output = job.wait()
    assert job.process.returncode == 1
    assert re.search(r"\[1\] saved \d+", output)
    assert "TrainingError: fewer than 2 workers for 1 s (--min-replicas 2); what was done is saved" in output
    assert "was ended by signal 9" in output.partition("TrainingError")[2]


def test_too_few_hosts_at_the_start_are_waited_for_and_then_a_wrong_usage(start) -> None:
    job = start("localhost:1", "2", "2", "count", "1")
    output = job.wait()
    assert job.process.returncode == 2
    assert "DeviceError: fewer than 2 workers for 1 s" in output and "nothing was trained" in output


def test_hosts_that_come_up_late_are_enough(start) -> None:
    job = start("localhost:1", "2", "2", "count")
    job.read_until(r"[01] of at least 2 workers are there; waiting up to 60 s for more")
    job.list_hosts("localhost:1 127.0.0.1:1")
    job.read_until(r"generation 1: rank . of 2 from 0", times=2)
    job.finish()
    assert job.process.returncode == 0


def test_a_worker_that_would_do_something_else_is_turned_away_and_the_others_train(start) -> None:
    job = start("localhost:2", "1", "2", "differ")
    job.read_until(
        r"worker 1 on localhost is turned away: dataset is the same on the first worker, another on worker 1"
    )
    job.read_until(r"generation 1: rank 0 of 1 from 0")
    job.finish()
    assert job.process.returncode == 0


def test_workers_that_all_fail_by_themselves_end_the_job_with_their_last_words(start) -> None:
    job = start("localhost:2", "1", "2", "all-fail")
    output = job.wait()
    assert job.process.returncode == 1
    assert re.search(r"TrainingError: no worker is left: worker . on localhost exited with status 3", output)
    assert "    the reason of the failure" in output


def test_generations_that_end_without_a_step_or_a_loss_do_not_follow_each_other_for_ever(start) -> None:
    job = start("localhost:2", "1", "2", "all-vain")
    output = job.wait()
    assert job.process.returncode == 1
    assert "failed 3 times in a row at step 0" in output and "a peer is gone" in output


def test_a_worker_that_hangs_is_ended_and_the_others_go_on(start) -> None:
    job = start("localhost:2", "1", "2", "hang")
    job.read_until(r"generation 1: rank . of 2 from 0", times=2)
    # The other one counts on alone here; in training it would stand still one step ahead.
    job.read_until(r"worker 1 on localhost hangs, and is ended")
    job.read_until(r"the job goes on with 1 workers")
    job.finish()
    assert job.process.returncode == 0


def test_a_worker_that_dies_while_all_meet_takes_nobody_else_with_it(start) -> None:
    job = start("localhost:2", "1", "2", "die-meeting")
    job.read_until(r"worker 1 on localhost was ended by signal 6")
    job.read_until(r"generation 2: rank . of [12]")
    job.finish()
    assert job.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_job_lets_every_worker_save(start, number: int) -> None:
    job = start("localhost:2", "1", "2", "count")
    job.read_until(r"generation 1: rank . of 2 from 0", times=2)
    job.process.send_signal(number)
    output = job.wait()
    assert job.process.returncode == 75
    assert "StoppedOnRequest: stopped on request; everything is saved" in output


def test_a_job_that_waits_for_workers_saves_and_stops_on_request(start) -> None:
    job = start("localhost:2", "2", "2", "count")
    job.read_until(r"generation 1: rank . of 2 from 0", times=2)
    os.kill(job.pid_of(1, 0), signal.SIGKILL)
    job.read_until(r"1 of at least 2 workers are there")
    job.read_until(r"\[1\] saved \d+")
    job.process.send_signal(signal.SIGTERM)
    job.wait()
    assert job.process.returncode == 75


def test_a_launcher_killed_with_9_leaves_no_process(start) -> None:
    job = start("localhost:2 127.0.0.1:1", "1", "3", "count")
    job.read_until(r"generation 1: rank . of 3 from 0", times=3)
    assert len(job.seen) == 6  # three guards and three workers
    job.process.kill()
    job.wait()


def test_a_script_that_fails_during_the_job_changes_nothing(start) -> None:
    job = start("localhost:1", "1", "2", "count")
    job.read_until(r"generation 1: rank 0 of 1 from 0")
    job.list_hosts("no host at all")
    (job.directory / "hosts").write_text("a b c\n")
    job.read_until(r"elastic: the host discovery script .* printed 'a b c'; expected NAME or NAME:WORKERS")
    job.list_hosts("localhost:1 127.0.0.1:1")
    job.read_until(r"generation 2: rank . of 2", times=2)
    job.finish()
    assert job.process.returncode == 0
