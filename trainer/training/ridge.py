"""A run of one step: the head is solved for in closed form, then evaluated and saved as after any training."""

import time
from typing import Final

import numpy as np

from trainer.config.config import Config
from trainer.console.progress import TrainingProgress
from trainer.data.dataset.storage import parse_path
from trainer.data.input.pipeline import open_split
from trainer.distribute.engine import Engine
from trainer.features.ridge_path import solve_path
from trainer.plan.plan import Plan
from trainer.run.checkpoint import CheckpointStore
from trainer.run.metric_writers import MetricWriters
from trainer.run.run_dir import RunDir
from trainer.step.state import TrainState
from trainer.system import atomic
from trainer.training.actions import EvaluateAndSave
from trainer.training.input import Caches, make_validation_stream
from trainer.training.train import make_evaluators, on_features, open_writers

SCHEMA_VERSION: Final = 1
PATH_FILE = "ridge_path.json"


def solve(
    plan: Plan,
    config: Config,
    run: RunDir,
    engine: Engine,
    state: TrainState,
    store: CheckpointStore | None,
    caches: Caches,
    progress: TrainingProgress,
) -> None:
    """Solves for the head on the features of the training split. Workers other than the chief have no `store`."""
    with open_writers(run, 0, []) if store else MetricWriters([]) as writers:
        if store:
            _solve_head(plan, config, run, caches, progress)
        engine.broadcast(state.variables)
        state.global_step.assign(1)
        state.start_averages()
        validation = make_validation_stream(plan, config, engine.topology, caches)
        saving = EvaluateAndSave(
            plan=plan,
            identity=plan.identity(config),
            state=state,
            store=store,
            evaluators=make_evaluators(plan, engine, on_features(state, caches), validation),
            writers=writers,
            progress=progress,
            leave_out=lambda _: None,
        )
        saving(1)
        progress.update(1, {})
    engine.barrier()


def _solve_head(plan: Plan, config: Config, run: RunDir, caches: Caches, progress: TrainingProgress) -> None:
    assert caches.tail is not None and caches.train is not None and caches.validation is not None, "as planned"
    started = time.monotonic()
    head = caches.tail.layers[-1]
    dataset_dir, num_views = parse_path(plan.dataset_dir), plan.features.num_views
    with open_split(dataset_dir, "train") as train, open_split(dataset_dir, "validation") as validation:
        solution = solve_path(
            np.asarray(caches.train),
            np.repeat(train.labels(), num_views),
            np.repeat(train.weights(), num_views),
            (np.asarray(caches.validation), validation.labels()),
            config.train.ridge_strengths,
        )
    # Classes after the last one that any image has keep a zero.
    kernel, bias = np.zeros(head.kernel.shape, np.float32), np.zeros(head.bias.shape, np.float32)
    kernel[:, : len(solution.bias)], bias[: len(solution.bias)] = solution.kernel, solution.bias
    head.kernel.assign(kernel)
    head.bias.assign(bias)
    path = [
        {"strength": strength, "validation_accuracy": accuracy}
        for strength, accuracy in zip(config.train.ridge_strengths, solution.accuracies, strict=True)
    ]
    atomic.write_json(
        run.path / PATH_FILE, {"schema_version": SCHEMA_VERSION, "chosen": solution.strength, "path": path}
    )
    progress.note(
        f"ridge regression of {len(path)} strengths in {time.monotonic() - started:.2f} s; the best is "
        f"{solution.strength:.2g}"
    )
