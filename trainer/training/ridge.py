"""Ridge regression: a run of one step that solves for the head in closed form, then evaluates and saves."""

import time
from typing import Final

import numpy as np

from trainer.console.progress import TrainingProgress
from trainer.data.dataset.storage import parse_path
from trainer.data.input.pipeline import open_split
from trainer.features.ridge_path import solve_path
from trainer.system import atomic
from trainer.training.actions import EvaluateAndSave
from trainer.training.context import RunContext
from trainer.training.input import TrainInputs
from trainer.training.saved_state import save_checkpoint
from trainer.training.train import make_evaluators, open_writers

SCHEMA_VERSION: Final = 1
PATH_FILE = "ridge_path.json"


def solve(context: RunContext, inputs: TrainInputs, progress: TrainingProgress) -> None:
    """Solve for the head on the features of the training split, then evaluate and save."""
    with open_writers(context, 0) as writers:
        if context.is_chief:
            _solve_head(context, inputs, progress)
        context.engine.broadcast(context.state.variables)
        context.state.global_step.assign(1)
        context.state.start_averages()
        evaluators = make_evaluators(context, inputs)
        EvaluateAndSave(context, evaluators=evaluators, writers=writers, progress=progress)(1)
        save_checkpoint(context, 1, is_last=True)
        progress.update(1, {})
    context.engine.barrier()


def _solve_head(context: RunContext, inputs: TrainInputs, progress: TrainingProgress) -> None:
    assert inputs.head_model is not None and inputs.train is not None and inputs.validation is not None, "as planned"
    started = time.monotonic()
    plan, strengths = context.plan, context.config.train.ridge_strengths
    head = inputs.head_model.layers[-1]
    dataset_dir, num_views = parse_path(plan.data.dataset_dir), plan.features.num_views
    with open_split(dataset_dir, "train") as train, open_split(dataset_dir, "validation") as validation:
        solution = solve_path(
            np.asarray(inputs.train),
            np.repeat(train.labels(), num_views),
            np.repeat(train.weights(), num_views),
            (np.asarray(inputs.validation), validation.labels()),
            strengths,
        )
    # Classes beyond the last one with an image keep weights of zero.
    kernel, bias = np.zeros(head.kernel.shape, np.float32), np.zeros(head.bias.shape, np.float32)
    kernel[:, : len(solution.bias)], bias[: len(solution.bias)] = solution.kernel, solution.bias
    head.kernel.assign(kernel)
    head.bias.assign(bias)
    path = [
        {"strength": strength, "validation_accuracy": accuracy}
        for strength, accuracy in zip(strengths, solution.accuracies, strict=True)
    ]
    atomic.write_json(
        context.run.path / PATH_FILE, {"schema_version": SCHEMA_VERSION, "chosen": solution.strength, "path": path}
    )
    progress.note(
        f"ridge regression of {len(path)} strengths in {time.monotonic() - started:.2f} s; the best is "
        f"{solution.strength:.2g}"
    )
