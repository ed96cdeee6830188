"""What a run leaves at its end, in a form that two runs can be compared in: they are equal, or the first difference."""

import dataclasses
import hashlib
import json
import pathlib
from collections import Counter
from typing import Any

from tests.chaos.saves import finished_steps

# These are of the clock and not of the training.
_OF_THE_CLOCK = ("time", "images_per_sec")
_OF_THE_FILE = ("sha256", "info_sha256")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The end of a run.

    Attributes:
        sha256: of the weights, the optimizer's slots and the averages of the last checkpoint.
        info: its step, seeds, loss scale, counters and validation metrics.
        metrics: the lines of metrics.jsonl in their order, without what the clock says.
        tensorboard: (split, tag, step, value) of each point, sorted.
    """

    sha256: str
    info: dict[str, Any]
    metrics: list[dict[str, Any]]
    tensorboard: list[tuple[str, str, int, float]]


def read_evidence(run_dir: pathlib.Path) -> Evidence:
    """Read what the finished run in `run_dir` has left."""
    checkpoints = run_dir / "checkpoints"
    last = checkpoints / f"step-{finished_steps(checkpoints)[-1]:08d}"
    digest = hashlib.sha256()
    for path in sorted(last.glob("*.safetensors")):
        digest.update(path.read_bytes())
    info = json.loads((last / "checkpoint.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Evidence(
        digest.hexdigest(),
        {name: value for name, value in info.items() if name not in _OF_THE_FILE},
        [{name: value for name, value in line.items() if name not in _OF_THE_CLOCK} for line in lines],
        _read_tensorboard(run_dir / "tensorboard"),
    )


def check_whole(evidence: Evidence, num_steps: int) -> str | None:
    """Return what is missing or doubled in the metrics of a run of `num_steps` that logs each step, or None."""
    steps = Counter(line["step"] for line in evidence.metrics if line["split"] == "train")
    missing = [step for step in range(1, num_steps + 1) if step not in steps]
    doubled = [step for step, count in steps.items() if count > 1]
    if missing or doubled:
        return f"metrics.jsonl lacks the steps {missing[:5]} and has the steps {doubled[:5]} twice"
    return None


def first_difference(found: Evidence, expected: Evidence) -> str | None:
    """Return in words where `found` differs from `expected`, or None if they are equal to the bit."""
    for i, (one, other) in enumerate(zip(found.metrics, expected.metrics, strict=False), 1):
        if one != other:
            return f"line {i} of metrics.jsonl is {one}, expected {other}"
    if len(found.metrics) != len(expected.metrics):
        return f"metrics.jsonl has {len(found.metrics)} lines, expected {len(expected.metrics)}"
    for name, value in expected.info.items():
        if found.info.get(name) != value:
            return f"{name} of the last checkpoint is {found.info.get(name)}, expected {value}"
    if found.sha256 != expected.sha256:
        return f"the weights have the SHA-256 {found.sha256}, expected {expected.sha256}"
    return None


def difference_of_points(found: Evidence, expected: Evidence) -> str | None:
    """Return in words where the charts of TensorBoard differ, or None if they show the same points, each once."""
    here, there = Counter(point[:3] for point in found.tensorboard), Counter(p[:3] for p in expected.tensorboard)
    if missing := there - here:
        return f"TensorBoard lacks {missing.total()} points, such as {min(missing)}"
    if doubled := here - there:
        return f"TensorBoard has {doubled.total()} points too many, such as {min(doubled)}"
    if found.tensorboard != expected.tensorboard:
        return "the points of TensorBoard have other values"
    return None


def _read_tensorboard(directory: pathlib.Path) -> list[tuple[str, str, int, float]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    points = []
    for file in sorted(directory.rglob("events.out.tfevents.*")):
        split = file.parent.name
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag not in _OF_THE_CLOCK:
                    number = float(tensor_util.make_ndarray(value.tensor))
                    points.append((split, value.tag, int(event.step), number))
    return sorted(points)
