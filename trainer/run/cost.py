"""Time, throughput and hardware of a run, from its log and its environment."""

import json
import math
import pathlib
import statistics
from typing import Any

import pydantic

from trainer.errors import RunError
from trainer.run.metric_writers import read_metrics
from trainer.run.run_dir import RunDir


class Cost(pydantic.BaseModel):
    """The cost of a run; null for what is unknown, for example in a run that was copied in part.

    training_secs: from the first logged step to the last, including evaluations, excluding start-up.
    images_per_sec: median over the lines of the log.
    replicas: for example "2 CPU replicas".
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    training_secs: float | None
    images_per_sec: float | None
    num_steps: int | None
    replicas: str | None
    machine: str | None


def read_cost(run: RunDir) -> Cost:
    """Read the cost of `run` from its files.

    Raises:
        RunError: a file of the run is broken.
    """
    entries = read_metrics(run.metrics_file) if run.metrics_file.is_file() else []
    plan, environment = read_object(run.plan_file), read_object(run.environment_file)
    times = [entry["time"] for entry in entries if "time" in entry]
    rates = [entry["images_per_sec"] for entry in entries if math.isfinite(entry.get("images_per_sec", math.nan))]
    replicas = None
    if "num_replicas" in plan:
        noun = f"{str(plan.get('device', '')).upper()} replica".strip()
        replicas = f"{plan['num_replicas']} {noun}{'' if plan['num_replicas'] == 1 else 's'}"
    return Cost(
        training_secs=max(times) - min(times) if times else None,
        images_per_sec=statistics.median(rates) if rates else None,
        num_steps=max((entry["step"] for entry in entries), default=None),
        replicas=replicas,
        machine=_machine(environment),
    )


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or {} if the file is missing, as in a run copied in part."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise RunError(f"{path} is not valid JSON ({e}); copy it again from where the run was made") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a {type(value).__name__}, expected a JSON object; copy the run again")
    return value


def _machine(environment: dict[str, Any]) -> str | None:
    """Describe the GPUs, or the processor and its cores if there are none."""
    gpus = [str(gpu.get("name")) for gpu in environment.get("gpus", [])]
    if gpus:
        return f"{len(gpus)} x {gpus[0]}"
    cpu = environment.get("cpu", {})
    cores = cpu.get("num_usable_cores")
    return f"{cpu['model']}, {cores} cores" if cpu.get("model") and cores else cpu.get("model")
