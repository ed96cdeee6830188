"""kill -9 of any worker, and of the launcher, at any moment: nothing is left behind, and the right one is named.

KILL_REPETITIONS says how often each is tried. By default it is once: a worker and the launcher of each strategy, at two
moments so dealt that any two choices meet; TRAINER_TESTS_COMPLETE=1 tries each at every moment. The workers only add up
numbers, in every tenth repetition they train; `tests/chaos/` kills jobs that train, and resumes them.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from launching import QUICK, command
from traces import Traces

from tests.complete import IS_COMPLETE

pytestmark = pytest.mark.slow

JOB = pathlib.Path(__file__).with_name("all_reduce_job.py")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NUM_REPETITIONS = int(os.environ.get("KILL_REPETITIONS", "3" if IS_COMPLETE else "1"))
NUM_WORKERS = 3
STRATEGIES = [pytest.param("horovod", marks=pytest.mark.horovod), "multiworker"]
# When the kill comes: while the workers load and find each other, while they work, or around the end of the first.
MOMENTS = ("starts", "adds up", "ends")


def moment_of(strategy: str, victim: str, repetition: int) -> str:
    """Return when the kill of "worker" or "launcher" comes; at first each moment meets each strategy and victim."""
    return MOMENTS[(repetition + ((strategy == "horovod") == (victim == "launcher"))) % len(MOMENTS)]


class Job:
    def __init__(self, arguments: list[str], output_file: pathlib.Path) -> None:
        self.output_file = output_file
        with output_file.open("wb") as output:
            self.process = subprocess.Popen(
                arguments,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_NUM_INTRAOP_THREADS": "1"},
                start_new_session=True,
            )
        self.traces = Traces()

    def output(self) -> str:
        return self.output_file.read_text()

    def wait_for(self, text: str, count: int) -> None:
        deadline = time.monotonic() + 600
        while self.output().count(text) < count:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)
        self.look()

    def look(self) -> None:
        self.traces.look(psutil.Process(self.process.pid))

    def pid_of_worker(self, index: int) -> int | None:
        """None where it has ended."""
        for process in self.traces.processes:
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if "TRAINER_HEARTBEAT_FD" not in environment:
                continue
            own = environment.get("HOROVOD_RANK") or environment["TF_CONFIG"].partition('"index": ')[2].rstrip("}")
            if int(own) == index:
                return process.pid
        return None


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    started: list[Job] = []
    yield started
    for job in started:
        if job.process.poll() is None:
            job.process.kill()
        job.process.wait()


def start(
    strategy: str, repetition: int, moment: str, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> tuple[Job, dict[str, str]]:
    """The job, and what its workers print at each of the moments."""
    if repetition % 10 != 9:
        # Long enough to be killed while it works, unless its end is what matters.
        num_steps = "20" if moment == "ends" else "1000000"
        arguments = [sys.executable, str(JOB), str(tmp_path / "logs"), strategy, str(NUM_WORKERS), num_steps]
        return Job(arguments, tmp_path / "output"), {name: name for name in MOMENTS}
    digits = request.getfixturevalue("digits")
    settings = (f"--data={digits}", f"--run-dir={tmp_path / 'run'}", f"--strategy={strategy}")
    arguments = command("launch", *settings, *QUICK, f"--replicas={NUM_WORKERS}")
    return Job(arguments, tmp_path / "output"), dict.fromkeys(MOMENTS, "step 1/")


def wait_for_moment(job: Job, texts: dict[str, str], moment: str, chance: random.Random) -> None:
    trains = len(set(texts.values())) == 1
    num_told = 1 if moment == "ends" or trains else NUM_WORKERS
    job.wait_for(texts[moment], num_told)
    time.sleep(chance.uniform(0, {"starts": 8.0, "adds up": 1.0, "ends": 0.5}[moment]))
    if job.process.poll() is None:
        job.look()


@pytest.mark.parametrize("repetition", range(NUM_REPETITIONS))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_worker_is_named_with_its_last_lines_and_nothing_is_left(
    strategy: str, repetition: int, request: pytest.FixtureRequest, tmp_path: pathlib.Path, jobs: list[Job]
) -> None:
    chance = random.Random(f"{strategy} {repetition}")
    victim = chance.randrange(NUM_WORKERS)
    moment = moment_of(strategy, "worker", repetition)
    job, texts = start(strategy, repetition, moment, tmp_path, request)
    jobs.append(job)
    wait_for_moment(job, texts, moment, chance)
    pid = job.pid_of_worker(victim)
    has_ended = pid is None
    if pid is not None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            has_ended = True
    job.process.wait(timeout=600)
    output = job.output()
    job.traces.check_that_nothing_is_left()
    if moment == "ends" and (has_ended or job.process.returncode == 0):
        assert job.process.returncode == 0, output  # it was through already
        return
    assert job.process.returncode == 1, output
    error = output[output.rindex("error:") :]
    assert f"worker {victim} on this machine was ended by signal 9" in error, output
    last_of_victim = [line for line in output.splitlines() if line.startswith(f"[{victim}] ")][-1:]
    assert all(line.removeprefix(f"[{victim}]").strip() in error for line in last_of_victim), output


@pytest.mark.parametrize("repetition", range(NUM_REPETITIONS))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_launcher_leaves_nothing(
    strategy: str, repetition: int, request: pytest.FixtureRequest, tmp_path: pathlib.Path, jobs: list[Job]
) -> None:
    chance = random.Random(f"{strategy} {repetition} launcher")
    moment = moment_of(strategy, "launcher", repetition)
    job, texts = start(strategy, repetition, moment, tmp_path, request)
    jobs.append(job)
    wait_for_moment(job, texts, moment, chance)
    job.process.kill()
    job.process.wait()
    job.traces.check_that_nothing_is_left()
