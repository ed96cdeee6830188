"""A folder with one of everything that `trainer clean` knows."""

import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.chaos.damage import make_checkpoint
from trainer.cli.app import app
from trainer.config.config import Config
from trainer.data.dataset.derived import HEADER, PIXELS
from trainer.features.store import FeatureStore
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir, RunInfo
from trainer.system import xla_cache

DAY_SECS = 86_400.0


def make_old(path: pathlib.Path, now_secs: float, days: float) -> None:
    """Let a file or folder, and everything in it, be last used so many days ago."""
    for each in (*path.rglob("*"), path):
        os.utime(each, (now_secs - days * DAY_SECS,) * 2, follow_symlinks=False)


def make_run(path: pathlib.Path, accuracies: dict[int, float | None]) -> RunDir:
    """Write a run with a checkpoint at each step."""
    run = RunDir(path)
    info = RunInfo(
        name="run",
        identity="0" * 64,
        dataset_dir="/data",
        dataset_hash="a" * 64,
        class_names=["cat", "dog"],
        num_train_examples=10,
        image_size_px=32,
        weights="none",
        precision="float32",
        batch_norm="frozen",
    )
    run.create(Config(), info)
    store = CheckpointStore(run.checkpoints_dir, keep=len(accuracies), best_metric="accuracy")
    for step, accuracy in accuracies.items():
        store.save(make_checkpoint(step, accuracy=accuracy))
    return run


def write_features(path: pathlib.Path) -> None:
    with FeatureStore(path, budget_bytes=2**30).write("train", {"of": "photos"}, (4, 2)) as writer:
        writer.write(np.zeros([4, 2], np.float32))


def write_pixels(path: pathlib.Path) -> None:
    path.mkdir(parents=True)
    (path / HEADER).write_text(json.dumps({"schema_version": 1, "sha256": "0"}))
    (path / PIXELS).write_bytes(bytes(100))


@pytest.fixture
def root(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Everything as old as the test is: a run, caches, features, programs of XLA and unfinished work."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    root = tmp_path / "root"
    make_run(root / "run", {10: 0.9, 20: 0.5, 30: 0.6, 40: None})
    for leftover in ("run/.tmp-plan.json-0a1b2c3d", "run/tensorboard/.tmp-events-0a1b2c3d", "run/.lease-0a1b2c3d"):
        (root / leftover).parent.mkdir(exist_ok=True)
        (root / leftover).write_text("torn")
    (root / "run/checkpoints/damaged-step-00000015").mkdir()
    write_features(root / "photos.features")
    write_pixels(root / "photos.cache" / "train-32px-0123456789abcdef")
    (root / ".tmp-export-0a1b2c3d").mkdir()
    (root / ".tmp-export-0a1b2c3d" / "model.onnx").write_bytes(bytes(100))
    (root / ".dataset.preparing").mkdir()
    (root / ".dataset.preparing" / "lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(xla_cache, "_held", {})
        patch.setattr("atexit.register", lambda *_: None)
        patch.delenv("TF_XLA_FLAGS", raising=False)
        patch.delitem(sys.modules, "tensorflow", raising=False)
        folder = xla_cache.use(root / "xla")
        (folder / "xla_compile_cache__1__2__XLA_CPU_JIT.pb").write_bytes(bytes(100))
        xla_cache.record(folder)
        os.close(xla_cache._held[folder])
    return root


def clean(*arguments: object, exit_status: int = 0) -> dict[str, Any]:
    """Run the command in this process and return its answer as JSON."""
    result = CliRunner().invoke(app, ["clean", *map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_status, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def reasons(answer: dict[str, Any], root: pathlib.Path, *actions: str) -> dict[str, str]:
    """Return the reasons of the entries with one of the actions, by path below `root`."""
    return {
        str(pathlib.Path(entry["path"]).relative_to(root)): entry["reason"]
        for entry in answer["entries"]
        if entry["action"] in actions
    }
