"""Workers come and go, and the run is the one of a single replica: every step once, and the same losses."""

import os
import pathlib
import signal
from collections.abc import Iterator

import pytest
from elastic_training import NUM_STEPS, TrainingJob

pytestmark = [pytest.mark.slow, pytest.mark.horovod]

EVERY_STEP_ONCE = list(range(1, NUM_STEPS + 1))


@pytest.fixture
def start(digits: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[type[TrainingJob]]:
    jobs: list[TrainingJob] = []

    def start_job(*arguments: str, **more: dict[str, str]) -> TrainingJob:
        jobs.append(TrainingJob(digits, tmp_path / "run", *arguments, **more))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.kill()


def test_the_chief_is_killed_and_a_new_host_joins_and_no_example_is_lost_or_repeated(
    start, tmp_path: pathlib.Path, unbroken_losses: list[float]
) -> None:
    (hosts := tmp_path / "hosts").write_text("localhost:2\n")
    (script := tmp_path / "discover").write_text(f"#!/bin/sh\ncat '{hosts}'\n")
    script.chmod(0o755)
    job = start("--strategy=horovod", "--max-replicas=3", f"--host-discovery-script={script}")
    job.wait_until(lambda: len(job.steps()) >= 3)
    chief, other = (job.workers()[i] for i in range(2))
    os.kill(chief.pid, signal.SIGKILL)
    job.wait_for_words(r"worker 0 on localhost was ended by signal 9")
    num_before = len(job.steps())
    job.wait_for_words(r"the job goes on with 1 workers from step \d+")
    job.wait_until(lambda: len(job.steps()) > num_before)
    # It must not be done before the other one has come up.
    os.kill(other.pid, signal.SIGSTOP)
    hosts.write_text("localhost:2\n127.0.0.1:1\n")
    job.wait_for_words(r"worker \d on 127.0.0.1 is ready to join")
    job.workers()
    os.kill(other.pid, signal.SIGCONT)
    step = int(job.wait_for_words(r"the job goes on with [23] workers from step (\d+)")[1])
    assert job.wait() == 0, job.text()
    assert step < NUM_STEPS
    assert job.steps() == EVERY_STEP_ONCE
    assert job.losses() == pytest.approx(unbroken_losses, rel=1e-5)
    assert job.steps("validation") == [23, 45, NUM_STEPS]
    assert job.text().count("trained:") == 1


def test_with_fewer_than_the_least_the_job_saves_and_ends_and_the_same_command_goes_on(
    start, unbroken_losses: list[float]
) -> None:
    arguments = ("--strategy=horovod", "--min-replicas=2", "--replicas=2")
    job = start(*arguments, environment={"HOROVOD_ELASTIC_TIMEOUT": "2"})
    job.wait_until(lambda: len(job.steps()) >= 3)
    os.kill(job.workers()[1].pid, signal.SIGKILL)
    assert job.wait() == 1
    assert "fewer than 2 workers for 2 s (--min-replicas 2); what was done is saved" in job.text()
    assert "Traceback" not in job.text()
    last = job.steps()[-1]
    assert (job.run_dir / "checkpoints" / f"step-{last:08d}").is_dir()
    # As one replica, which is the same run.
    again = start()
    assert again.wait() == 0, again.text()
    assert f"from step {last} of {NUM_STEPS}" in again.text()
    assert again.steps() == EVERY_STEP_ONCE
    assert again.losses() == pytest.approx(unbroken_losses, rel=1e-5)
