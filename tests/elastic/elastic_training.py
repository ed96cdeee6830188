"""Runs `trainer launch` in the background on a setting that takes seconds: the head alone, on small images."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import psutil

from tests import small_backbone

# The batch statistics are frozen with the backbone, so that the number of replicas cannot show in the losses.
QUICK = (
    "--device=cpu",
    *small_backbone.OPTIONS,
    "--set=model.image_size_px=32",
    "--set=model.trainable=head",
    "--set=train.epochs=3",
    "--set=log.every_steps=1",
)
NUM_STEPS = 68
_DEADLINE_SECS = 600


def lines_of(run_dir: pathlib.Path) -> list[dict[str, float]]:
    """What the metrics log of a run holds now."""
    log = run_dir / "metrics.jsonl"
    content = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]


def losses_of(run_dir: pathlib.Path) -> list[float]:
    """The training loss of each step of a run."""
    return [line["loss"] for line in lines_of(run_dir) if line["split"] == "train"]


class TrainingJob:
    """One command and all of its processes; what it prints is in `output_file`."""

    def __init__(
        self,
        dataset: pathlib.Path,
        run_dir: pathlib.Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        on_host: Callable[[Sequence[str]], list[str]] = list,
    ) -> None:
        self.run_dir = run_dir
        self.output_file = run_dir.with_name(f"{run_dir.name}-{time.monotonic_ns()}.txt")
        command = [sys.executable, "-m", "trainer", "launch", f"--data={dataset}", f"--run-dir={run_dir}"]
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                on_host([*command, *QUICK, *arguments]),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self.seen: set[psutil.Process] = set()

    def text(self) -> str:
        return self.output_file.read_text(errors="replace")

    def lines(self) -> list[dict[str, float]]:
        return lines_of(self.run_dir)

    def steps(self, split: str = "train") -> list[float]:
        return [line["step"] for line in self.lines() if line["split"] == split]

    def losses(self) -> list[float]:
        return losses_of(self.run_dir)

    def wait_until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + _DEADLINE_SECS
        while not holds():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def wait_for_words(self, pattern: str) -> re.Match[str]:
        self.wait_until(lambda: re.search(pattern, self.text()))
        found = re.search(pattern, self.text())
        assert found is not None
        return found

    def workers(self) -> dict[int, psutil.Process]:
        """The workers by their index, which is in the order of their starts."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.seen |= set(processes)
        workers = [p for p in processes if "TRAINER_CHANNEL_FD" in p.environ()]
        return dict(enumerate(sorted(workers, key=lambda p: p.ppid())))

    def wait(self) -> int:
        """The exit status, once nobody is left of what was seen."""
        status = self.process.wait(timeout=_DEADLINE_SECS)
        _, alive = psutil.wait_procs(self.seen, timeout=600)
        assert not alive
        return status

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
