"""Starts jobs of `training_worker.py` as users start theirs, and collects what their workers saw."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

from training_runs import Outcome, TrainingRun

HERE = pathlib.Path(__file__).resolve().parent
HOROVODRUN = (str(pathlib.Path(sys.executable).with_name("horovodrun")), "--gloo")
# Root may run it, and several processes may share one core: CI is both.
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
TIMEOUT_SECS = 600


@dataclasses.dataclass(frozen=True)
class Job:
    """Replicas of one strategy, and who starts them."""

    strategy: Literal["single", "mirrored", "multiworker", "horovod"]
    num_replicas: int
    transport: Literal["memory", "grpc", "gloo", "mpi"]

    def __str__(self) -> str:
        return f"{self.strategy} x{self.num_replicas} over {self.transport}"


@dataclasses.dataclass
class Worker:
    """What a worker wrote down at its end."""

    num_replicas: int
    transport: str
    outcomes: list[Outcome]


def run_job(
    job: Job, runs: Sequence[TrainingRun], *, out_dir: pathlib.Path, dataset_dir: pathlib.Path, xla_flags: str
) -> list[Worker]:
    """Makes all `runs` one after the other in each process of `job`."""
    num_local = job.num_replicas if job.strategy in ("single", "mirrored") else 1
    command = [
        sys.executable,
        str(HERE / "training_worker.py"),
        job.strategy,
        str(num_local),
        str(out_dir),
        str(dataset_dir),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[1]),
        "XLA_FLAGS": xla_flags,
        "RUNS": json.dumps([dataclasses.asdict(run) for run in runs]),
    }
    if job.strategy == "horovod":
        starter = HOROVODRUN if job.transport == "gloo" else MPIRUN
        command = [*starter, "-np", str(job.num_replicas), *command]
    environments = [environment]
    if job.strategy == "multiworker":
        environments = [{**environment, "TF_CONFIG": config} for config in _tf_configs(job.num_replicas)]
    _run_processes(command, environments)
    return [_read_worker(path) for path in sorted(out_dir.glob("worker-*.json"))]


def _run_processes(command: list[str], environments: list[dict[str, str]]) -> None:
    processes = [
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for environment in environments
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT_SECS)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)


def _read_worker(path: pathlib.Path) -> Worker:
    content = json.loads(path.read_text())
    outcomes = [Outcome(**outcome) for outcome in content.pop("outcomes")]
    return Worker(outcomes=outcomes, **content)


def _tf_configs(num_workers: int) -> Iterator[str]:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in _free_ports(num_workers)]}
    for i in range(num_workers):
        yield json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}})


def _free_ports(num_ports: int) -> list[int]:
    sockets = [socket.socket() for _ in range(num_ports)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [int(free.getsockname()[1]) for free in sockets]
    for free in sockets:
        free.close()
    return ports
