"""`trainer doctor` on this machine, and on machines that a program of the same name pretends to be."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

NVIDIA_SMI = """#!/bin/sh
echo "NVIDIA H100 80GB HBM3, 550.54.15"
echo "NVIDIA H100 80GB HBM3, 550.54.15"
"""


def run_doctor(*arguments: str, path: pathlib.Path | None = None) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status, and the findings by the name of the check."""
    search = os.pathsep.join([*([str(path)] if path else []), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-c", "from trainer.cli.app import main; main()", "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": search},
        check=False,
    )
    assert done.stdout, done.stderr
    findings: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        findings.setdefault(finding["check"], []).append(finding)
    return done.returncode, findings


@pytest.fixture(scope="module")
def here() -> tuple[int, dict[str, list[dict[str, Any]]]]:
    return run_doctor()


def test_every_part_has_a_verdict_and_what_is_not_well_has_a_fix(here: Any) -> None:
    status, findings = here
    parts = {"Python", "TensorFlow", "XLA", "Horovod", "MPI", "GPU driver", "GPUs"}
    parts |= {"cores", "memory", "shared memory", "open files", "disk", "ports", "clock"}
    assert parts <= findings.keys()
    every = [finding for group in findings.values() for finding in group]
    assert all(finding["fix"] for finding in every if finding["verdict"] != "ok")
    assert status == any(finding["verdict"] == "problem" for finding in every)
    assert findings["XLA"][0]["verdict"] == "ok"


@pytest.mark.horovod
def test_horovod_is_found_with_what_it_was_built_with(here: Any) -> None:
    (finding,) = here[1]["Horovod"]
    assert finding["verdict"] == "ok"
    assert "for TensorFlow" in finding["found"]
    assert "Gloo" in finding["found"]


def test_gpus_that_the_driver_lists_and_tensorflow_does_not_are_a_problem_that_names_the_libraries(
    tmp_path: pathlib.Path,
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    status, findings = run_doctor(path=tmp_path)
    assert status == 1
    assert findings["GPU driver"][0]["verdict"] == "ok"
    assert "H100" in findings["GPU driver"][0]["found"]
    missing = {finding["found"].split()[0]: finding["fix"] for finding in findings["CUDA libraries"]}
    assert "nvidia-cudnn-cu12" in missing["libcudnn.so.9"]
    (finding,) = findings["GPUs"]
    assert finding["verdict"] == "problem"
    assert "the driver lists 2" in finding["found"]


def test_gpus_and_hosts_that_are_asked_for_and_not_there_are_problems() -> None:
    status, findings = run_doctor(
        "--gpus=8", "--strategy=horovod", "--hosts=no-such-host.invalid:2", "--ssh-option=-oConnectTimeout=2"
    )
    assert status == 1
    assert findings["GPU driver"][0]["verdict"] == "problem"
    assert "8 asked for" in findings["GPUs"][0]["found"]
    (finding,) = findings["host no-such-host.invalid"]
    assert finding["verdict"] == "problem"
    assert "no-such-host.invalid" in finding["found"]
    *_, finding = findings["Horovod"]
    # What is installed here is without NCCL, where it is installed.
    assert finding["verdict"] == "problem" or "NCCL" in finding["found"]
    assert "make horovod" in finding["fix"] or finding["verdict"] == "ok"
