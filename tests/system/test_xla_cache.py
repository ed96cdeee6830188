"""Programs compiled by XLA are kept for the next process, and a damaged one is compiled again."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from trainer.errors import ConfigError
from trainer.system import in_use, xla_cache

PROCESS = pathlib.Path(__file__).with_name("xla_cache_process.py")
PROGRAM = "xla_compile_cache__1__2__XLA_CPU_JIT.pb"


@pytest.fixture
def before_tensorflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has not imported TensorFlow; each start is a new process."""
    monkeypatch.setattr(xla_cache, "_held", {})
    monkeypatch.setattr("atexit.register", lambda *_: None)
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_clustering_debug")
    monkeypatch.delitem(sys.modules, "tensorflow")
    yield
    end_process()


def end_process() -> None:
    while xla_cache._held:
        os.close(xla_cache._held.popitem()[1])


def run(directory: pathlib.Path) -> list[str]:
    ended = subprocess.run(
        [sys.executable, str(PROCESS), str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_a_program_is_kept_and_a_damaged_one_is_compiled_again(tmp_path: pathlib.Path) -> None:
    first = run(tmp_path)
    assert first[1] == "1"
    (program,) = tmp_path.glob("*/*.pb")
    content = program.read_bytes()
    damaged = content[: len(content) // 2]
    program.write_bytes(damaged)
    assert run(tmp_path) == first
    assert program.read_bytes() != damaged


@pytest.mark.usefixtures("before_tensorflow")
def test_what_has_no_checksum_is_kept_only_while_its_process_may_live(tmp_path: pathlib.Path) -> None:
    folder = xla_cache.use(tmp_path)
    assert f"--tf_xla_persistent_cache_directory={folder}" in os.environ["TF_XLA_FLAGS"]
    assert os.environ["TF_XLA_FLAGS"].startswith("--tf_xla_clustering_debug ")
    (folder / PROGRAM).write_bytes(b"compiled")
    descriptor = in_use.share(folder / xla_cache.LOCK_NAME)  # another process
    end_process()
    xla_cache.use(tmp_path)
    assert (folder / PROGRAM).exists()
    os.close(descriptor)
    end_process()  # killed before it recorded the checksum
    xla_cache.use(tmp_path)
    assert not (folder / PROGRAM).exists()
    (folder / PROGRAM).write_bytes(b"compiled")
    xla_cache.record(folder)
    end_process()
    xla_cache.use(tmp_path)
    assert (folder / PROGRAM).read_bytes() == b"compiled"
    (folder / PROGRAM).write_bytes(b"comqiled")
    end_process()
    xla_cache.use(tmp_path)
    assert not (folder / PROGRAM).exists()


@pytest.mark.usefixtures("before_tensorflow")
def test_other_flags_have_programs_of_their_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = xla_cache.use(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert xla_cache.use(tmp_path) != one


@pytest.mark.usefixtures("before_tensorflow")
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\); name another folder with --set"):
        xla_cache.use(tmp_path / "file")
    with pytest.raises(ConfigError, match="has a space or a quote"):
        xla_cache.use(tmp_path / "a folder")
    monkeypatch.setattr(xla_cache, "_MIN_FREE_BYTES", 2**80)
    with pytest.raises(ConfigError, match="MiB are free, and"):
        xla_cache.use(tmp_path / "full")


def test_where_tensorflow_runs_already_it_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    with pytest.raises(ConfigError, match="TensorFlow runs in this process already"):
        xla_cache.use(tmp_path)
