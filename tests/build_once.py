"""What a test session makes once for both of its processes: the first that asks builds it, another waits for it."""

import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from trainer.system import lock


def build_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[pathlib.Path], object]
) -> pathlib.Path:
    """Return a directory of this session's own, which `build` has filled: read it, and change only a copy."""
    session_dir = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session_dir = session_dir.parent  # each process of pytest-xdist has a folder in it
    directory, is_done = session_dir / "shared" / name, session_dir / "shared" / f"{name}.done"
    with lock.hold(session_dir / "shared" / f"{name}.lock"):
        if not is_done.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            build(directory)
            is_done.touch()
    return directory
