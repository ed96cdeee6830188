"""What `trainer evaluate` tuned of a run, as the exported model applies it: temperature and thresholds."""

from typing import NamedTuple, cast

import numpy as np

from trainer.errors import RunError
from trainer.metrics.evaluation import Evaluation, Tuning
from trainer.run.checkpoint import Weights, Which, find_model_file
from trainer.run.run_dir import RunDir, RunInfo


class AppliedTuning(NamedTuple):
    """temperature: of the probabilities; None: not calibrated. thresholds: on these probabilities, multi_label alone;
    None: none were tuned.
    """

    temperature: float | None
    thresholds: list[float] | None


def tuning_to_apply(
    run: RunDir, *, which: Which, weights: Weights, calibrate: bool | None, step: int | None = None
) -> AppliedTuning:
    """What was tuned on the validation split with exactly these weights.

    calibrate: None divides by the temperature where there is one. step: of `which`, where it was found before.

    Raises:
        RunError: `calibrate` is asked for, and the run was not evaluated with these weights, or none calibrates it.
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
    """Whether an evaluation is of exactly the weights that are asked for, by whatever name: auto means one of two."""
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
    """The threshold on sigmoid(logit / temperature) that decides as `threshold` does on sigmoid(logit)."""
    with np.errstate(divide="ignore"):
        logit = np.log(threshold) - np.log1p(-threshold)
    # At 0 and 1 the logit is infinite, and the threshold stays.
    return float(1 / (1 + np.exp(-logit / temperature)))
