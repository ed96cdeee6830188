"""Two exports of one model in fresh processes are the same bytes, every file of them."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import export

pytestmark = pytest.mark.slow


def test_two_exports_of_one_model_are_the_same_bytes(model: Any, tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "weights.npz", *model.get_weights())
    script = pathlib.Path(__file__).with_name("export_in_a_fresh_process.py")
    project = pathlib.Path(export.__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "weights.npz"), str(tmp_path / name)],
            # Sets of strings are walked in another order in each process.
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(project)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, seed in (("first", "1"), ("second", "2"))
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    # Every file but this one is in it, fingerprint.pb included.
    first, second = (json.loads((tmp_path / name / "checksums.json").read_text()) for name in ("first", "second"))
    assert len(first["files"]) == 31
    assert {n for n in first["files"] if first["files"][n] != second["files"][n]} == set()
    assert first == second
