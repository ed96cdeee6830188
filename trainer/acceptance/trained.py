"""Read losses and weights of a run directory, for a comparison with another."""

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from trainer.run.checkpoint import MODEL_FILE, read_arrays, read_info
from trainer.run.checkpoint_store import CheckpointStore, find_checkpoint
from trainer.run.metric_writers import read_metrics
from trainer.run.run_dir import RunDir


def read_losses(run_dir: pathlib.Path) -> list[float]:
    """Return the training loss of each logged step, in order."""
    lines = read_metrics(RunDir(run_dir).metrics_file)
    return [line["loss"] for line in lines if line["split"] == "train"]


def read_rates(run_dir: pathlib.Path) -> list[float]:
    """Return the images per second of each line of the training."""
    lines = read_metrics(RunDir(run_dir).metrics_file)
    return [line["images_per_sec"] for line in lines if line["split"] == "train"]


def last_checkpoint(run_dir: pathlib.Path) -> pathlib.Path:
    """Return the directory of the last checkpoint."""
    run = RunDir(run_dir)
    store = CheckpointStore.of_run(run, run.config().checkpoint)
    return store.path(find_checkpoint(run, "last"))


def hash_of_weights(run_dir: pathlib.Path) -> str:
    """Return the SHA-256 of weights, optimizer slots and averages of the last checkpoint."""
    digest = hashlib.sha256()
    for path in sorted(last_checkpoint(run_dir).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def difference_of_losses(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest difference, relative to the expected loss; infinity if the numbers of steps differ."""
    if len(found) != len(expected) or not expected:
        return float("inf")
    one, other = np.asarray(found), np.asarray(expected)
    differences = np.abs(one - other) / np.maximum(np.abs(other), 1e-6)
    return float(np.nan_to_num(differences, nan=np.inf).max())


def difference_of_weights(found: pathlib.Path, expected: pathlib.Path) -> float:
    """Return the norm of the difference of the last weights of two runs, relative to that of the expected ones."""
    one, other = (_read_weights(run_dir) for run_dir in (found, expected))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other)) if one.shape == other.shape else float("inf")


def _read_weights(run_dir: pathlib.Path) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    path = last_checkpoint(run_dir)
    arrays = read_arrays(path, MODEL_FILE, read_info(path))
    return np.concatenate([arrays[name].reshape(-1).astype(np.float64) for name in sorted(arrays)])
