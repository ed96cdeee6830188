"""One command trains over two hosts that share no run directory; one is cut off, and the job goes on later."""

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import pytest
from launching import QUICK, command, launch, metrics

pytestmark = pytest.mark.slow

sys.path.append(str(pathlib.Path(__file__).parents[1] / "launchers"))
if TYPE_CHECKING:
    from two_hosts import TwoHosts

# Dropout is keyed by the slice of a replica, so it is left out where replicas are compared.
SETTINGS = (
    "--set=model.dropout=0",
    "--set=train.epochs=1",
    "--set=train.global_batch_size=16",
    "--set=checkpoint.every_steps=20",
    "--set=log.every_steps=1",
)
STRATEGIES = [pytest.param("horovod", marks=pytest.mark.horovod), "multiworker"]
HOST_TIMEOUT_SECS = 8


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator["TwoHosts"]:
    from two_hosts import find_obstacle, two_hosts

    if (obstacle := find_obstacle()) is not None:
        pytest.skip(obstacle)
    directory = tmp_path_factory.mktemp("hosts")
    (directory / "runs").mkdir()
    with two_hosts(directory, hide=directory / "runs") as found:
        yield found


@pytest.fixture(scope="module")
def losses_alone(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, float]:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    alone = launch(digits, run_dir, *SETTINGS)
    output, _ = alone.communicate(timeout=600)
    assert alone.returncode == 0, output
    return losses(run_dir)


def losses(run_dir: pathlib.Path) -> dict[float, float]:
    """Training losses by step."""
    return {m["step"]: m["loss"] for m in metrics(run_dir) if "loss" in m}


def start(hosts: "TwoHosts", digits: pathlib.Path, run_dir: pathlib.Path, strategy: str) -> subprocess.Popen[str]:
    arguments = (
        f"--data={digits}",
        f"--run-dir={run_dir}",
        f"--strategy={strategy}",
        f"--hosts={hosts.names[0]}:1,{hosts.names[1]}:1",
        f"--set=distribute.ssh_options={json.dumps(hosts.ssh_options)}",
        f"--set=distribute.host_timeout_secs={HOST_TIMEOUT_SECS}",
        "--set=distribute.start_timeout_secs=600",
    )
    return subprocess.Popen(
        hosts.command_on_first(command("launch", *arguments, *QUICK, *SETTINGS)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(run_dir: pathlib.Path) -> list[psutil.Process]:
    """The launcher and the workers of a job, on both hosts; guards and ssh do not name the run."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(run_dir) in argument for argument in process.info["cmdline"] or [])
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_over_two_hosts_survives_a_cut_cable_and_gives_the_losses_of_one_replica(
    strategy: str, hosts: "TwoHosts", digits: pathlib.Path, losses_alone: dict[float, float]
) -> None:
    run_dir = hosts.hidden / strategy
    job = start(hosts, digits, run_dir, strategy)
    deadline = time.monotonic() + 600
    while not list(run_dir.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline and job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    started = processes_of(run_dir)
    assert len(started) == 3, "the launcher and a worker on each host"
    hosts.cut()
    try:
        output, _ = job.communicate(timeout=HOST_TIMEOUT_SECS + 600)
        assert job.returncode == 1, output
        last = output[output.index("error:") :]
        assert f"worker 1 on {hosts.names[1]} is out of reach" in last, output
        assert f"did not answer for {HOST_TIMEOUT_SECS} s" in last
        # With the cable still out: the guard on the other host has ended its worker by itself.
        _, alive = psutil.wait_procs(started, timeout=600)
        assert not alive
    finally:
        hosts.mend()
    assert not list(hosts.hidden_of_second.iterdir()), "the second host wrote, or was given, a run directory"
    last_step = max(int(path.name.removeprefix("step-")) for path in run_dir.glob("checkpoints/step-*"))

    again = start(hosts, digits, run_dir, strategy)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert f"going on with {run_dir} from step {last_step}" in output
    assert losses(run_dir) == pytest.approx(losses_alone, rel=1e-5)
    assert not list(hosts.hidden_of_second.iterdir()), "the second host wrote, or was given, a run directory"
