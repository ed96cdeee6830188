"""`trainer launch --strategy ... --replicas 2`: the command starts its workers, and they train as one replica does."""

import os
import pathlib
import signal
import subprocess
import time

import psutil
import pytest
from launching import QUICK, check_that_a_second_command_is_refused, metrics

from trainer.system.child_python import python_command

pytestmark = pytest.mark.slow

COMPARABLE = ("--set=train.epochs=1",)
STRATEGIES = [pytest.param("horovod", marks=pytest.mark.horovod), "multiworker"]


def start(dataset: pathlib.Path, run_dir: pathlib.Path, strategy: str, *more: str) -> subprocess.Popen[str]:
    """In a directory where a user's own files have the names of our package and of modules that it needs."""
    place = run_dir.with_name("place of the user")
    place.mkdir(exist_ok=True)
    for name in ("trainer", "random", "numpy", "tensorflow", "export"):
        (place / f"{name}.py").write_text(f"raise SystemExit('the {name}.py of the user')")
    return subprocess.Popen(
        python_command(
            "trainer",
            "launch",
            f"--data={dataset}",
            f"--run-dir={run_dir}",
            f"--strategy={strategy}",
            "--replicas=2",
            *QUICK,
            *COMPARABLE,
            *more,
        ),
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_workers_that_the_command_starts_train_as_one_replica_does(
    strategy: str, digits: pathlib.Path, tmp_path: pathlib.Path, losses_alone: list[float]
) -> None:
    job = start(digits, tmp_path / "job", strategy)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert [m["loss"] for m in metrics(tmp_path / "job")] == pytest.approx(losses_alone, rel=1e-5)
    assert output.count("trained:") == 1, "only the launcher speaks of the end"
    assert all((tmp_path / "job" / "logs" / f"worker-0000{i}.log").is_file() for i in range(2))


@pytest.mark.horovod
def test_a_worker_killed_in_training_is_named_and_nobody_is_left(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run_dir = tmp_path / "job"
    settings = ("--set=train.epochs=3", "--set=checkpoint.every_steps=5")
    job = start(digits, run_dir, "horovod", *settings)
    deadline = time.monotonic() + 600
    while not list(run_dir.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline and job.poll() is None, "training must start"
        time.sleep(0.05)
    check_that_a_second_command_is_refused(digits, run_dir, job.pid)
    processes = psutil.Process(job.pid).children(recursive=True)
    workers = [p for p in processes if p.environ().get("HOROVOD_RANK") == "1" and "launch" in p.cmdline()]
    os.kill(workers[0].pid, signal.SIGKILL)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 1
    assert "worker 1 on this machine was ended by signal 9" in output
    _, alive = psutil.wait_procs(processes, timeout=600)
    assert not alive
