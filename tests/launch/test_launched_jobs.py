"""`trainer launch --strategy ... --replicas 2`: the command starts its workers, and they train as one replica does."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import psutil
import pytest
from launching import QUICK, check_that_a_second_command_is_refused, command, launch, metrics

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


@pytest.fixture(scope="module")
def losses_alone(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    alone = launch(digits, run_dir, *COMPARABLE)
    output, _ = alone.communicate(timeout=600)
    assert alone.returncode == 0, output
    return [m["loss"] for m in metrics(run_dir)]


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
def test_a_worker_killed_in_training_is_named_nobody_is_left_and_the_job_goes_on(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
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
    again = start(digits, run_dir, "horovod", *settings)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert re.search(r"going on with .* from step (5|10|15|20|25|30)", output)


def test_workers_that_differ_in_their_settings_end_before_the_first_step(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Two workers that TF_CONFIG alone brings together, as in a cluster."""
    cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
    workers = []
    for i in range(2):
        content = {"cluster": cluster, "task": {"type": "worker", "index": i}}
        arguments = [f"--data={digits}", f"--run-dir={tmp_path / str(i)}", "--strategy=multiworker", *QUICK]
        workers.append(
            subprocess.Popen(
                command("launch", *arguments, f"--set=train.seed={i}"),
                env={**os.environ, "TF_CONFIG": json.dumps(content)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [2, 2], outputs
    assert all("the workers differ in their configuration" in output for output in outputs)
    assert not list(tmp_path.glob("*/checkpoints/step-*"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
