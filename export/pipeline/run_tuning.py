"""Find the temperature and thresholds that `trainer evaluate` tuned, as the exported model applies them."""

from typing import NamedTuple, cast

import numpy as np

from trainer.errors import RunError
from trainer.metrics.evaluation import Evaluation, Tuning
from trainer.run.checkpoint_store import Weights, Which, find_model_file
from trainer.run.run_dir import RunDir, RunInfo


class AppliedTuning(NamedTuple):
    """The tuning of an exported model.

    Attributes:
        temperature: the divisor of the logits; None: not calibrated.
        thresholds: on the calibrated probabilities, multi_label only; None: not tuned.
    """

    temperature: float | None
    thresholds: list[float] | None


def tuning_to_apply(
    run: RunDir, *, which: Which, weights: Weights, calibrate: bool | None, step: int | None = None
) -> AppliedTuning:
    """Return what was tuned on the validation split with exactly these weights.

    With `calibrate` None, the temperature is applied if there is one. `step` is the checkpoint `which`, if that is
    resolved already.

    Raises:
        RunError: `calibrate` is True, and there is no temperature for these weights.
    """
    info = run.info()
    tuning = _find_tuning(run, info, which if step is None else step, weights)
    if calibrate and tuning is None:
        raise RunError(
            f"{run.path} has no temperature for these weights; make it with: trainer evaluate {run.path} "
            f"--split validation --which {which} --weights {weights}"
        )
    if calibrate and tuning is not None and tuning.temperature is None:
        raise RunError(
            f"no temperature calibrates {run.path}: on the validation split it is always right, or knows nothing; "
            "export it with --no-calibrate"
        )
    temperature = tuning.temperature if tuning and calibrate is not False else None
    thresholds = tuning.thresholds if tuning and info.task == "multi_label" else None
    if temperature is not None and thresholds is not None:
        thresholds = [_calibrated(threshold, temperature) for threshold in thresholds]
    return AppliedTuning(temperature, thresholds)


def is_of_weights(run: RunDir, evaluation: Evaluation, which: Which | int, weights: Weights) -> bool:
    """Return whether an evaluation is of exactly the requested weights; "auto" means one of two."""
    return _is_of_weights(run, evaluation.global_step, evaluation.weights, which, weights)


def _find_tuning(run: RunDir, info: RunInfo, which: Which | int, weights: Weights) -> Tuning | None:
    if not (run.evaluation_dir / "validation.json").is_file():
        return None
    tuning = Evaluation.load(run.evaluation_dir, "validation").tuning
    if tuning is None or tuning.dataset_hash != info.dataset_hash:
        return None
    return tuning if _is_of_weights(run, tuning.global_step, tuning.weights, which, weights) else None


def _is_of_weights(run: RunDir, step: int, evaluated: str, which: Which | int, weights: Weights) -> bool:
    path, wanted_step = find_model_file(run, which, weights)
    return step == wanted_step and find_model_file(run, which, cast(Weights, evaluated))[0] == path


def _calibrated(threshold: float, temperature: float) -> float:
    """Return the threshold on sigmoid(logit / temperature) equivalent to `threshold` on sigmoid(logit)."""
    with np.errstate(divide="ignore"):
        logit = np.log(threshold) - np.log1p(-threshold)
    # At 0 and 1 the logit is infinite, and the threshold unchanged.
    return float(1 / (1 + np.exp(-logit / temperature)))
