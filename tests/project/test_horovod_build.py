"""Horovod as `make horovod` leaves it: the right wheel for this environment, and sums that are right."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from scripts import build_horovod

pytestmark = pytest.mark.slow

TARGET = build_horovod.Target(
    tensorflow="2.21.0", python="cpython-3.11", platform="linux-x86_64 glibc-2.36", mpi="Open MPI 4.1.4", nccl=None
)
HOROVODRUN = (str(pathlib.Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", "2")
# Root may run it, and two processes may share one core: CI is both.
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--tag-output", "-np", "2")


def run_job(command: list[str], timeout_secs: float = 600) -> str:
    """Runs a job of several processes to its end, and its whole process group with it."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as job:
        try:
            output, _ = job.communicate(timeout=timeout_secs)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            raise
    assert job.returncode == 0, output
    return output


@pytest.mark.horovod
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(HOROVODRUN, id="gloo"),
        *([pytest.param(MPIRUN, id="mpi")] if build_horovod.find_mpi() else []),
    ],
)
def test_two_processes_sum_float32_over(launcher):
    output = run_job([*launcher, sys.executable, str(build_horovod.TRIAL)])
    answers = [json.loads(line) for line in re.findall(r"\{.*\}", output)]
    assert sorted(answer["rank"] for answer in answers) == [0, 1], output
    for answer in answers:
        assert answer["size"] == 2
        assert answer["dtype"] == "float32"
        assert answer["sum"] == [0.0 + 1.0, 1.0 + 2.0, 2.0 + 3.0, 3.0 + 4.0]


@pytest.mark.horovod
def test_the_installed_horovod_is_the_build_for_this_environment():
    assert importlib.metadata.version("horovod") == build_horovod.find_target().version()


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(build_horovod.Target)])
def test_each_part_of_the_target_has_a_wheel_of_its_own(tmp_path, field):
    other = dataclasses.replace(TARGET, **{field: "another"})
    (tmp_path / f"horovod-{other.version()}-cp311-cp311-linux_x86_64.whl").touch()
    assert build_horovod.find_wheel(tmp_path, TARGET) is None
    mine = tmp_path / f"horovod-{TARGET.version()}-cp311-cp311-linux_x86_64.whl"
    mine.touch()
    assert build_horovod.find_wheel(tmp_path, TARGET) == mine


def test_the_version_of_a_wheel_names_horovod_and_tensorflow_and_is_a_normal_one():
    assert re.fullmatch(r"0\.28\.1\+tf2\.21\.0\.b[0-9a-f]{10}", TARGET.version())


def test_mpi_and_nccl_are_asked_for_where_they_are_and_refused_where_not():
    with_mpi = TARGET.environment()
    assert with_mpi["HOROVOD_WITH_MPI"] == "1"
    assert not {"HOROVOD_WITHOUT_MPI", "HOROVOD_GPU_OPERATIONS"} & (with_mpi.keys() - os.environ.keys())
    on_gpus = dataclasses.replace(TARGET, mpi=None, nccl="NCCL 2.27.3").environment()
    assert on_gpus["HOROVOD_WITHOUT_MPI"] == "1"
    assert on_gpus["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert on_gpus["HOROVOD_WITH_GLOO"] == with_mpi["HOROVOD_WITH_GLOO"] == "1"


def test_only_the_line_of_the_unbuildable_source_is_removed(tmp_path):
    cmake_file = tmp_path / "CMakeLists.txt"
    cmake_file.write_text('list(APPEND S "mpi_ops.cc")\nlist(APPEND S "xla_mpi_ops.cc")\nset_output_dir()\n')
    build_horovod.remove_unbuildable_source(cmake_file)
    assert cmake_file.read_text() == 'list(APPEND S "mpi_ops.cc")\nset_output_dir()\n'


@pytest.mark.parametrize("num_lines", [0, 2])
def test_a_source_without_exactly_that_line_is_refused(tmp_path, num_lines):
    cmake_file = tmp_path / "CMakeLists.txt"
    cmake_file.write_text("first\n" + 'list(APPEND S "xla_mpi_ops.cc")\n' * num_lines)
    with pytest.raises(build_horovod.BuildError, match=f"on {num_lines} lines where exactly one was expected"):
        build_horovod.remove_unbuildable_source(cmake_file)


def test_without_a_compiler_the_message_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        build_horovod.BuildError, match=r"c\+\+ and cmake and make not found.*apt-get install g\+\+ cmake"
    ):
        build_horovod.require_build_tools()


def test_a_source_whose_hash_is_not_the_locked_one_is_not_unpacked(monkeypatch, tmp_path):
    lock = tmp_path / "horovod.lock"
    lock.write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", build_horovod.LOCK.read_text()))
    monkeypatch.setattr(build_horovod, "LOCK", lock)
    with pytest.raises(build_horovod.BuildError, match="DO NOT MATCH THE HASHES"):
        build_horovod.fetch_source(tmp_path, tmp_path / "log")
    assert list(tmp_path.glob("horovod-0*")) == []
