"""An elastic job over two hosts, each with its own network, name and disk, one of which is cut off in mid-epoch."""

import pathlib

import psutil
import pytest
from elastic_training import NUM_STEPS, TrainingJob
from two_hosts import find_obstacle, two_hosts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.horovod,
    pytest.mark.skipif(find_obstacle() is not None, reason=find_obstacle() or ""),
]


def test_a_host_is_cut_off_and_the_job_goes_on_without_it(
    digits: pathlib.Path, tmp_path: pathlib.Path, unbroken_losses: list[float]
) -> None:
    (run_dir := tmp_path / "of-first" / "run").parent.mkdir()
    with two_hosts(tmp_path, hide=run_dir.parent) as hosts:
        options = ",".join(f"'{option}'" for option in hosts.ssh_options)
        job = TrainingJob(
            digits,
            run_dir,
            "--strategy=horovod",
            "--min-replicas=1",
            f"--hosts={hosts.names[0]}:1,{hosts.names[1]}:1",
            f"--set=distribute.ssh_options=[{options}]",
            "--set=distribute.start_timeout_secs=600",
            on_host=hosts.command_on_first,
        )
        try:
            job.wait_until(lambda: len(job.steps()) >= 3)
            job.workers()
            # Processes of all namespaces are seen from here.
            on_second = [p for p in psutil.process_iter() if is_worker_of(p, run_dir) and p not in job.seen]
            assert len(on_second) == 1
            hosts.cut()
            assert job.wait() == 0, job.text()
            _, alive = psutil.wait_procs(on_second, timeout=600)
            assert not alive
        finally:
            job.kill()
    assert f"worker 1 on {hosts.names[1]} is out of reach" in job.text()
    assert "the job goes on with 1 workers from step" in job.text()
    assert job.steps() == list(range(1, NUM_STEPS + 1))
    assert job.losses() == pytest.approx(unbroken_losses, rel=1e-5)


def is_worker_of(process: psutil.Process, run_dir: pathlib.Path) -> bool:
    try:
        return f"--run-dir={run_dir}" in process.cmdline() and "TRAINER_CHANNEL_FD" in process.environ()
    except psutil.Error:
        return False
