"""Runs `trainer launch` in a process of its own, on a setting that takes seconds."""

import hashlib
import json
import pathlib
import subprocess
import sys

import pytest

from tests import small_backbone
from trainer.config.config import load_config
from trainer.errors import RunError
from trainer.launch.plan_run import plan_run

# The head alone on small images, with dropout: what is random must come out the same after a restart.
QUICK = (
    "--device=cpu",
    *small_backbone.OPTIONS,
    "--set=model.image_size_px=32",
    "--set=model.trainable=head",
    "--set=model.dropout=0.2",
    "--set=augment.preset=light",
    "--set=train.epochs=2",
    "--set=log.every_steps=5",
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from trainer.cli.app import main; main()", *arguments]


def launch(dataset: pathlib.Path, run_dir: pathlib.Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("launch", f"--data={dataset}", f"--run-dir={run_dir}", *QUICK, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check_that_a_second_command_is_refused(dataset: pathlib.Path, run_dir: pathlib.Path, pid: int) -> None:
    """`run_dir` is held by the command `pid`, whatever the second one would train there."""
    config = load_config(overrides=["distribute.device=cpu", f"data.path={dataset}"])
    with pytest.raises(RunError, match=f"is being trained by process {pid} on .*; wait"):
        plan_run(config, run_dir=run_dir, resume=True, note=lambda _: None)


def final_weights_hash(run_dir: pathlib.Path) -> str:
    """SHA-256 of the weights, their averages and the optimizer's slots of the last checkpoint."""
    last = max((run_dir / "checkpoints").glob("step-*"))
    digest = hashlib.sha256()
    for path in sorted(last.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def metrics(run_dir: pathlib.Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
