"""Every engine trains as one replica does: the same losses at each step, and the same weights at the end."""

import importlib.util
import math
import statistics
from typing import Any, Final, Literal

from trainer.acceptance import trained
from trainer.acceptance.result import Result, failed, not_run, passed
from trainer.acceptance.work import Work, launch_command, run_command

SINGLE: Final = "single"
EXPECTED_SINGLE: Final = "one replica trains to the end, and its loss falls"
# In float32; what is left are other orders of the same sums.
MAX_LOSS_DIFFERENCE: Final = 1e-4
MAX_WEIGHT_DIFFERENCE: Final = 1e-4
EXPECTED_EQUAL: Final = (
    f"losses and weights of one replica, within {MAX_LOSS_DIFFERENCE:g} and {MAX_WEIGHT_DIFFERENCE:g}"
)
SAVE_EVERY_STEPS: Final = 2
# The same operations in the same order each time, and float32 that is not rounded to TF32.
EXACT: Final = {"TF_DETERMINISTIC_OPS": "1", "NVIDIA_TF32_OVERRIDE": "0"}
_BATCH_OF_REPLICA = 8

Several = Literal["mirrored", "multiworker", "horovod"]


def check_single(work: Work) -> list[Result]:
    """Train on one replica: the run that the engines and the resumed run are compared with."""
    run_exactly(work, SINGLE, {"distribute.strategy": SINGLE, **work.device_settings})
    losses = trained.read_losses(work.run_dir(SINGLE))
    quarter = max(1, len(losses) // 4)
    first, last = statistics.fmean(losses[:quarter]), statistics.fmean(losses[-quarter:])
    seen = f"{len(losses)} steps, loss {first:.3f} to {last:.3f}"
    figures: dict[str, Any] = {"num_steps": len(losses), "first_loss": first, "last_loss": last}
    if not math.isfinite(last) or last >= first:
        log = work.run_dir(SINGLE) / "metrics.jsonl"
        figures["last_loss"] = last if math.isfinite(last) else None
        return [failed(SINGLE, EXPECTED_SINGLE, seen, f"the loss does not fall: {log}", **figures)]
    return [passed(SINGLE, EXPECTED_SINGLE, seen, **figures)]


def check_engine(work: Work, strategy: Several) -> list[Result]:
    """Train on all replicas with `strategy`, and compare with the run on one."""
    if reason := why_not(work, strategy):
        return [not_run(strategy, EXPECTED_EQUAL, reason)]
    number = "gpus" if work.device == "gpu" else "replicas"
    settings = {"device": work.device, "strategy": strategy, number: work.num_replicas}
    run_exactly(work, strategy, {f"distribute.{name}": value for name, value in settings.items()})
    return [compare_runs(work, strategy)]


def compare_runs(work: Work, strategy: str) -> Result:
    """Compare the run of `strategy` with that on one replica."""
    found, expected = work.run_dir(strategy), work.run_dir(SINGLE)
    losses = trained.read_losses(found)
    loss = trained.difference_of_losses(losses, trained.read_losses(expected))
    weights = trained.difference_of_weights(found, expected)
    seen = f"{work.num_replicas} replicas, {len(losses)} steps: {loss:.1e} and {weights:.1e}"
    figures = {
        name: value if math.isfinite(value) else None
        for name, value in {"loss_difference": loss, "weight_difference": weights}.items()
    }
    if loss <= MAX_LOSS_DIFFERENCE and weights <= MAX_WEIGHT_DIFFERENCE:
        return passed(strategy, EXPECTED_EQUAL, seen, **figures)
    return failed(strategy, EXPECTED_EQUAL, seen, f"compare {found} with {expected}", **figures)


def run_exactly(work: Work, name: str, settings: dict[str, Any]) -> None:
    """Train the small network in the run directory `name`, so that the same settings give the same bits."""
    run_command(work, exact_command(work, name, settings), name, EXACT)


def exact_command(work: Work, name: str, settings: dict[str, Any]) -> list[str]:
    """Return the command of `run_exactly`."""
    from trainer.data.dataset.manifest import Manifest

    batch_size = _BATCH_OF_REPLICA * work.num_replicas
    num_train = Manifest.load(work.dataset).splits["train"].num_examples
    return launch_command(
        work,
        name,
        {
            **work.small_network_settings,
            "model.dropout": 0.2,
            "augment.preset": "light",
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 0.05,
            "train.global_batch_size": batch_size,
            "train.epochs": work.size.equal_steps * batch_size / num_train,
            "checkpoint.every_steps": SAVE_EVERY_STEPS,
            "log.every_steps": 1,
            "distribute.precision": "float32",
            "distribute.xla": "off",
            **settings,
        },
    )


def why_not(work: Work, strategy: Several) -> str:
    """Return why `strategy` cannot run on several replicas here; nothing if it can."""
    if work.num_replicas == 1:
        return "there is one GPU, and several replicas need two"
    if strategy != "horovod":
        return ""
    if importlib.util.find_spec("horovod") is None:
        return "Horovod is not installed; build it with: make horovod"
    if work.device == "gpu":
        from trainer.distribute.horovod import has_nccl

        if not has_nccl():
            return "Horovod is built without NCCL, and refuses GPUs; install NCCL's headers, then: make horovod"
    return ""
