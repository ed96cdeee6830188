"""`trainer doctor --accept` on this machine, once and in small; and what becomes of a check that fails."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from trainer.cli.app import main; main()", "doctor", "--accept", "--small"]
SEVERAL = ["mirrored", "multiworker", pytest.param("horovod", marks=pytest.mark.horovod)]
# A driver that lists a GPU which TensorFlow does not find.
NVIDIA_SMI = '#!/bin/sh\necho "NVIDIA H100 80GB HBM3, 81559, 550.54.15"\n'


def accept(out: pathlib.Path, *options: str, path: Sequence[pathlib.Path] = ()) -> tuple[int, dict[str, Any]]:
    """Return the exit status, and the report that was printed, which is that in the file."""
    search = os.pathsep.join([*map(str, path), os.environ["PATH"]])
    done = subprocess.run(
        [*COMMAND, f"--out={out}", "--json", *options],
        capture_output=True,
        text=True,
        cwd=out.parent,
        env={**os.environ, "PATH": search},
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report == json.loads((out / "acceptance.json").read_text())
    return done.returncode, report


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in report["checks"]}


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], pathlib.Path]:
    out = tmp_path_factory.mktemp("acceptance") / "out"
    return *accept(out, "--limit-secs=1200"), out


def test_this_machine_is_accepted_and_every_check_says_what_it_saw(accepted: Any) -> None:
    status, report, out = accepted
    assert {name: check["reason"] for name, check in by_name(report).items() if check["outcome"] == "failed"} == {}
    assert (status, report["is_accepted"], report["is_complete"]) == (0, True, True)
    assert (report["device"], report["num_replicas"]) == ("cpu", 2)
    for check in report["checks"]:
        assert check["expected"]
        assert check["secs"] > 0
        assert check["seen"] if check["outcome"] == "passed" else check["reason"]
    assert not (out / "work").exists(), "what it trained is not needed any more"


@pytest.mark.parametrize("strategy", SEVERAL)
def test_every_engine_was_compared_with_one_replica(accepted: Any, strategy: str) -> None:
    check = by_name(accepted[1])[strategy]
    assert check["outcome"] == "passed"
    assert 0 <= check["figures"]["loss_difference"] < 1e-5
    assert 0 <= check["figures"]["weight_difference"] < 1e-5


@pytest.mark.parametrize("strategy", SEVERAL)
def test_the_bandwidth_of_every_engine_was_measured(accepted: Any, strategy: str) -> None:
    check = by_name(accepted[1])[f"all-reduce-{strategy}"]
    assert check["outcome"] == "passed"
    figures = check["figures"]
    assert figures["bytes_per_sec"] == pytest.approx(figures["bytes"] / figures["secs"])
    # No memory is as fast; a reduction that was not made at all would be.
    assert 1e6 < figures["bytes_per_sec"] < 5e10
    assert "link" not in figures


def test_the_hlo_was_read_and_images_per_second_measured_in_four_trainings(accepted: Any) -> None:
    checks = by_name(accepted[1])
    convolutions = checks["hlo"]["figures"]["convolutions"]
    names = [f"{precision} XLA {xla}" for precision in ("float32", "mixed_bfloat16") for xla in ("off", "on")]
    assert list(convolutions) == list(checks["images-per-sec"]["figures"]["images_per_sec"]) == names
    assert [convolutions[name] > 0 for name in names] == [False, True, False, True]
    wanted = checks["images-per-sec"]["figures"]["images_per_sec"][checks["images-per-sec"]["figures"]["fastest"]]
    assert checks["input"]["figures"]["wanted_images_per_sec"] == wanted


def test_lack_of_memory_was_met_and_survived(accepted: Any) -> None:
    figures = by_name(accepted[1])["memory"]["figures"]
    assert figures["num_parts"] >= 2
    assert figures["limit_bytes"] < figures["peak_bytes"]
    assert figures["loss_difference"] < 1e-5


def test_a_run_was_killed_in_its_middle_and_ended_with_the_same_weights(accepted: Any) -> None:
    figures = by_name(accepted[1])["resume"]["figures"]
    assert 0 < figures["killed_after_step"] < by_name(accepted[1])["single"]["figures"]["num_steps"]
    assert figures["sha256"] == figures["expected_sha256"]


def test_a_check_that_fails_gives_status_1_and_those_that_need_it_are_not_run(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    status, report = accept(tmp_path / "out", "--only=single", path=[program.parent])
    assert (status, report["is_accepted"], report["is_complete"]) == (1, False, True)
    checks = by_name(report)
    assert {name: check["outcome"] for name, check in checks.items()} == {
        "machine": "failed",
        "dataset": "not run",
        "single": "not run",
    }
    assert "the driver lists 1" in checks["machine"]["reason"]
    assert checks["dataset"]["reason"] == "it needs the check machine, which has not passed"


def test_a_check_that_does_not_end_in_time_has_failed(tmp_path: pathlib.Path) -> None:
    status, report = accept(tmp_path / "out", "--only=machine", "--limit-secs=1")
    assert status == 1
    (check,) = report["checks"]
    assert check["outcome"] == "failed"
    assert "not ended within 1 s" in check["reason"]


def test_ctrl_c_leaves_the_report_of_what_was_done_and_no_process(tmp_path: pathlib.Path) -> None:
    command = [*COMMAND, f"--out={tmp_path / 'out'}", "--only=single", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[2/3] dataset"):
            break
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate()
    assert process.returncode == 1
    report = json.loads(printed)
    assert report == json.loads((tmp_path / "out" / "acceptance.json").read_text())
    assert (report["is_accepted"], report["is_complete"]) == (False, False)
    assert [check["outcome"] for check in report["checks"]] == ["passed", "not run", "not run"]
    assert by_name(report)["dataset"]["reason"] == "interrupted (SIGINT)"
    # They are killed, and may need a moment to be gone.
    assert psutil.wait_procs(children, timeout=600)[1] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only=engines"], "the checks are machine, dataset, single"),
        (["--hosts=a:8"], "--hosts is given, and --accept checks one machine"),
        (["--out=."], "name a new directory"),
    ],
)
def test_what_cannot_be_checked_is_refused(options: list[str], message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
