"""The same command under horovodrun: two processes, the same losses as one replica."""

import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from launching import QUICK, command, metrics

pytestmark = [pytest.mark.slow, pytest.mark.horovod]

COMPARABLE = ("--set=train.epochs=1",)


def horovodrun(*arguments: str) -> subprocess.Popen[str]:
    program = shutil.which("horovodrun", path=str(pathlib.Path(sys.executable).parent))
    assert program, "make horovod installs it"
    return subprocess.Popen(
        [program, "--gloo", "-np", "2", *command("launch", "--strategy=horovod", *QUICK, *COMPARABLE, *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_horovod_workers_train_as_one_replica_does(
    digits: pathlib.Path, tmp_path: pathlib.Path, losses_alone: list[float]
) -> None:
    job = horovodrun(f"--data={digits}", f"--run-dir={tmp_path / 'job'}")
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert [m["loss"] for m in metrics(tmp_path / "job")] == pytest.approx(losses_alone, rel=1e-5)
    assert output.count("trained:") == 1, "only the chief speaks"


def test_a_stopped_job_has_saved_before_any_worker_exits(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run_dir = tmp_path / "job"
    job = horovodrun(f"--data={digits}", f"--run-dir={run_dir}", "--set=train.epochs=500")
    deadline = time.monotonic() + 600
    while not (run_dir / "metrics.jsonl").exists() or not metrics(run_dir):
        assert time.monotonic() < deadline and job.poll() is None, "training must start"
        time.sleep(0.1)
    subprocess.run(["pkill", "-TERM", "-f", f"run-dir={run_dir}.*epochs=500", "--newest"], check=True)
    output, _ = job.communicate(timeout=600)
    assert "the same command goes on" in output, output
    (checkpoint,) = (run_dir / "checkpoints").glob("step-*")
    assert (checkpoint / "checkpoint.json").is_file()
    assert job.returncode != 0
