"""The same command as a worker that somebody else has started: mpirun, Slurm, a JobSet; and what can be wrong there."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from launching import QUICK, command, metrics

from tests import small_backbone
from trainer.config.config import load_config
from trainer.data.dataset.manifest import Manifest
from trainer.distribute.launchers.cluster import slurm_addresses
from trainer.distribute.launchers.environments import horovod_rendezvous
from trainer.distribute.launchers.external import check_size
from trainer.distribute.launchers.hosts import Host, assign_slots
from trainer.distribute.launchers.worker import Ready
from trainer.distribute.topology import Topology
from trainer.errors import ConfigError, DeviceError
from trainer.launch.job import check_workers_agree
from trainer.launch.plan_run import plan_run
from trainer.launch.run_session import RunSession

pytestmark = pytest.mark.slow

COMPARABLE = ("--set=train.epochs=1",)
SLURM_STEP = {
    "SLURM_JOB_ID": str(os.getpid()),
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
}


def start(environment: dict[str, str], *arguments: str, program: list[str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*(program or []), *command("launch", *QUICK, *COMPARABLE, *arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def slurm_task(index: int) -> dict[str, str]:
    return {**SLURM_STEP, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}


def tf_config(index: int, ports: list[int]) -> dict[str, str]:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def losses(run_dir: pathlib.Path) -> list[float]:
    return [m["loss"] for m in metrics(run_dir)]


@pytest.mark.horovod
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI's mpirun, and Horovod built for it")
def test_two_workers_of_mpirun_train_as_one_replica_does(
    digits: pathlib.Path, tmp_path: pathlib.Path, losses_alone: list[float]
) -> None:
    job = start(
        {},
        "--strategy=horovod",
        f"--data={digits}",
        f"--run-dir={tmp_path / 'run'}",
        program=["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"],
    )
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert losses(tmp_path / "run") == pytest.approx(losses_alone, rel=1e-5)
    assert output.count("trained:") == 1, "only the chief speaks"


def test_two_tasks_of_a_slurm_step_train_as_one_replica_does(
    digits: pathlib.Path, tmp_path: pathlib.Path, losses_alone: list[float]
) -> None:
    """The variables alone; there is no Slurm here."""
    arguments = ("--strategy=multiworker", f"--data={digits}", f"--run-dir={tmp_path / 'run'}")
    tasks = [start(slurm_task(i), *arguments) for i in range(2)]
    outputs = [task.communicate(timeout=600)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert losses(tmp_path / "run") == pytest.approx(losses_alone, rel=1e-5)
    assert "".join(outputs).count("trained:") == 1, "only the chief speaks"


def test_workers_with_different_datasets_end_before_the_first_step_and_name_them(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset

    prepare_dataset("digits", tmp_path / "digits", options=PrepareOptions(seed=1))
    ports = [free_port(), free_port()]
    workers = [
        start(tf_config(i, ports), "--strategy=multiworker", f"--data={data}", f"--run-dir={tmp_path / str(i)}")
        for i, data in enumerate((digits, tmp_path / "digits"))
    ]
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [2, 2], outputs
    assert all("the workers differ in their" in output and "dataset" in output for output in outputs), outputs
    assert not any("Traceback" in output for output in outputs), outputs
    assert not list(tmp_path.glob("*/checkpoints/step-*"))


class SecondOfTwo:
    """What the check asks of an engine: worker 1 gathers its own digests and those that worker 0 has."""

    topology = Topology(strategy="multiworker", device="cpu", num_local_replicas=1, num_workers=2, worker_index=1)

    def __init__(self, of_first: np.ndarray[Any, Any] | None = None) -> None:
        self.of_first = of_first

    def gather_from_workers(self, array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        self.of_first = array if self.of_first is None else self.of_first
        return [self.of_first, array]


def facts_of(dataset: pathlib.Path, *settings: str) -> dict[str, str]:
    """What a worker with these settings compares with the others."""
    overrides = [*small_backbone.SETTINGS, "distribute.device=cpu", f"data.path={dataset}", *settings]
    planned = plan_run(load_config(overrides=overrides), run_dir=None, resume=False, note=lambda _: None)
    return RunSession(planned, lambda _: None, contextlib.ExitStack()).facts


def test_workers_that_differ_in_their_settings_or_dataset_are_told_in_which(digits: pathlib.Path) -> None:
    facts = facts_of(digits)
    assert facts["dataset"] == Manifest.load(digits).content_hash()
    engine: Any = SecondOfTwo()
    check_workers_agree(engine, facts)
    with pytest.raises(ConfigError, match=r"the workers differ in their configuration: .*, and worker 1 not what"):
        check_workers_agree(engine, facts_of(digits, "train.seed=1"))
    with pytest.raises(ConfigError, match="the workers differ in their dataset: worker 1 has another, and worker 1"):
        check_workers_agree(engine, {**facts, "dataset": "another"})


def test_a_port_of_tf_config_that_another_process_has_is_named_with_it(
    digits: pathlib.Path, tmp_path: pathlib.Path, taken_port: int
) -> None:
    environment = tf_config(1, [free_port(), taken_port])
    worker = start(environment, "--strategy=multiworker", f"--data={digits}", f"--run-dir={tmp_path}")
    output, _ = worker.communicate(timeout=600)
    assert worker.returncode == 2, output
    assert f"error: port {taken_port} of this host, where TF_CONFIG wants worker 1, is in use by process" in output
    assert f"process {os.getpid()} " in output and "Traceback" not in output


def test_a_dry_run_waits_for_no_other_worker(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arguments = ("--strategy=multiworker", f"--data={digits}", f"--run-dir={tmp_path / 'run'}", "--dry-run")
    worker = start(tf_config(0, [free_port(), free_port()]), *arguments, "--set=distribute.start_timeout_secs=1")
    output, _ = worker.communicate(timeout=600)
    assert worker.returncode == 0, output
    assert "2 workers" in output


JOIN = """
import sys
from trainer.system import tf_runtime
from trainer.errors import DeviceError
tf_runtime.configure(use_gpus=False)
from trainer.distribute.launchers import waiting
from trainer.distribute.launchers.cluster import join_cluster
from trainer.distribute.launchers.external import find_external_worker
waiting.TELL_AFTER_SECS = 1.0
try:
    join_cluster(find_external_worker(), timeout_secs=3, note=lambda line: print("note:", line, flush=True))
except DeviceError as e:
    sys.exit(f"error: {e}")
print("joined")
"""
# Nothing listens there. The password is nobody's business.
PROXY = {"http_proxy": "http://me:secret@127.0.0.1:9", "no_proxy": "example.org"}


def join(index: int, ports: list[int]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", JOIN],
        env={**os.environ, **tf_config(index, ports), **PROXY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_workers_meet_around_a_proxy_of_the_environment() -> None:
    ports = [free_port(), free_port()]
    workers = [join(i, ports) for i in range(2)]
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert all("joined" in output for output in outputs), outputs


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_never_comes_is_told_of_and_waited_for_no_longer_than_was_said(index: int) -> None:
    ports = [free_port(), free_port()]
    waits = join(index, ports)
    output, _ = waits.communicate(timeout=600)
    assert waits.returncode == 1
    missing = f"worker {1 - index} at 127.0.0.1:{ports[1 - index]}"
    told = f"note: worker {index} waits for {missing}, up to 3 s: TF_CONFIG names 2 workers"
    assert told in output, output
    error = output.partition("error: ")[2]
    assert f"worker {index} has waited 3 s for {missing}, without an answer" in error
    assert "env -u TF_CONFIG" in error and "http_proxy is http://127.0.0.1:9" in error and "secret" not in output


JOIN_HOROVOD = """
import sys
from trainer.system import tf_runtime
from trainer.errors import DeviceError
tf_runtime.configure(use_gpus=False)
from trainer.distribute import horovod
from trainer.distribute.launchers import waiting
waiting.TELL_AFTER_SECS = 1.0
try:
    horovod.start("cpu", start_timeout_secs=3, note=lambda line: print("note:", line, flush=True))
except DeviceError as e:
    sys.exit(f"error: {e}")
"""


@pytest.mark.horovod
def test_a_worker_of_horovod_that_never_comes_is_told_of_and_ends_the_wait_without_a_crash() -> None:
    slots = assign_slots([Host(None, 2)])
    ready = Ready(
        host="here", address="127.0.0.1", interface="lo", port=1, launcher_address="127.0.0.1", time=0.0, versions={}
    )
    with horovod_rendezvous() as rendezvous:
        environment = {**os.environ, **rendezvous.environments(slots, [ready, ready])[1], **PROXY}
        waits = subprocess.run(
            [sys.executable, "-c", JOIN_HOROVOD], env=environment, capture_output=True, text=True, timeout=600
        )
    assert waits.returncode == 2, waits.stderr
    who = "for the other 1 of 2 workers (HOROVOD_SIZE is 2, and http_proxy is http://127.0.0.1:9)"
    assert f"note: worker 1 waits {who}, up to 3 s" in waits.stdout
    assert f"error: worker 1 has waited 3 s {who}, without an answer" in waits.stderr


@pytest.mark.horovod
def test_a_horovod_that_does_not_see_the_other_workers_is_refused(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each process would train alone as the chief, all into one run directory."""
    worker = start(slurm_task(1), "--strategy=horovod", f"--data={digits}", f"--run-dir={tmp_path / 'run'}")
    output, _ = worker.communicate(timeout=600)
    assert worker.returncode == 2, output
    assert "makes this process worker 1 of 2, but Horovod has found 1" in output, output
    assert not (tmp_path / "run").exists()


def test_a_size_that_agrees_is_accepted() -> None:
    check_size(2, {"PMI_RANK": "1", "PMI_SIZE": "2"})
    check_size(1, {})
    check_size(3, {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_ELASTIC": "1"})  # an elastic job that has grown
    with pytest.raises(DeviceError, match="HOROVOD_RANK makes this process worker 1 of 2, but Horovod has found 1"):
        check_size(1, {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"})
    with pytest.raises(DeviceError, match="TF_CONFIG makes this process worker 0 of 2, but Horovod has found 1"):
        check_size(1, tf_config(0, [1, 2]))
    with pytest.raises(DeviceError, match="PMI_RANK makes this process worker 1 of 2, but Horovod has found 1"):
        check_size(1, {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"})


def test_a_strategy_whose_library_is_missing_says_how_to_get_it(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    without = "import sys; sys.modules['horovod'] = None; from trainer.cli.app import main; main()"
    arguments = ["launch", f"--data={digits}", f"--run-dir={tmp_path}", "--strategy=horovod", "--replicas=2", *QUICK]
    job = subprocess.run(
        [sys.executable, "-c", without, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert job.returncode == 2
    assert "error: Horovod is not installed" in job.stderr and "make horovod" in job.stderr
    assert "Traceback" not in job.stderr


def test_every_task_of_a_slurm_step_finds_the_same_addresses_in_the_order_of_the_ranks() -> None:
    step = {**SLURM_STEP, "SLURM_STEP_NODELIST": "gpu[2,9-11]", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}
    addresses = slurm_addresses(step)
    # As Slurm numbers its tasks; sorted by name, gpu10 would come first.
    assert [a.partition(":")[0] for a in addresses] == ["gpu2", "gpu2", "gpu9", "gpu9", "gpu10", "gpu10", "gpu11"]
    assert len(set(addresses)) == 7
    assert all(20_000 <= int(a.partition(":")[2]) < 32_000 for a in addresses)
    assert slurm_addresses({**step, "SLURM_STEP_ID": "1"})[0] != addresses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_STEP_NODELIST": None}, "no SLURM_STEP_NODELIST for this task; start the workers with srun"),
        ({"SLURM_DISTRIBUTION": "cyclic"}, "srun --distribution=block"),
    ],
)
def test_a_slurm_step_that_cannot_be_followed_is_refused(changes: dict[str, str | None], message: str) -> None:
    step = {name: value for name, value in {**SLURM_STEP, **changes}.items() if value is not None}
    with pytest.raises(DeviceError, match=message):
        slurm_addresses(step)
