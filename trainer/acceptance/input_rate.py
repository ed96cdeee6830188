"""The input pipeline alone against the training step: whether the step would wait for images."""

import json
from typing import Final

from trainer.acceptance.rates import RATES
from trainer.acceptance.result import Result, failed, passed
from trainer.acceptance.work import Work, run_command
from trainer.system.child_python import python_command

INPUT: Final = "input"
EXPECTED: Final = "decoding gives as many images/s as the steps of all GPUs take; no limit on CPUs, which do both"
_NUM_READERS = 4


def check_input(work: Work, results: dict[str, Result]) -> list[Result]:
    """Measure the input with `trainer bench input`, and compare it with the fastest step of `results`."""
    settings = {**work.measured_network_settings, "train.global_batch_size": work.size.rate_batch}
    options = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    measure = [f"--secs={work.size.input_secs}", f"--readers={_NUM_READERS}", "--json"]
    command = python_command("trainer", "bench", "input", str(work.dataset), *options, *measure)
    answer = json.loads(run_command(work, command, INPUT))
    return [judge_input(answer["rates"][0]["pipeline"], answer["limiting_stage"], work, results[RATES])]


def judge_input(images_per_sec: float, limit: str, work: Work, rates: Result) -> Result:
    """Judge `images_per_sec` of the input, limited by the stage `limit`, against the steps of `rates`."""
    fastest = rates.figures["fastest"]
    # On CPUs all replicas share the cores, and one is as fast as several.
    num_replicas = work.num_replicas if work.device == "gpu" else 1
    wanted = rates.figures["images_per_sec"][fastest] * num_replicas
    replicas = f"{num_replicas} replica{'s' if num_replicas != 1 else ''}"
    seen = f"{images_per_sec:,.0f} images/s, limited by {limit}; the steps of {replicas} take {wanted:,.0f} ({fastest})"
    figures = {"images_per_sec": images_per_sec, "wanted_images_per_sec": wanted, "limiting_stage": limit}
    if work.device == "gpu" and images_per_sec < wanted:
        fix = "the step waits for images: keep decoded ones (--set data.cache=memory), or give it more cores"
        return failed(INPUT, EXPECTED, seen, fix, **figures)
    return passed(INPUT, EXPECTED, seen, **figures)
