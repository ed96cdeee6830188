"""From a configuration to a run: finds the dataset and the run directory, plans, and trains."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator

from rich.console import Console

from trainer.console.progress import TrainingProgress, task_progress
from trainer.console.task_progress import show_nothing
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.records import verify_shards
from trainer.data.dataset.storage import parse_path
from trainer.distribute.elastic import options
from trainer.launch import elastic_worker, job
from trainer.launch.plan_run import RUNS_DIR, PlannedRun
from trainer.launch.replicas import make_engine
from trainer.model.match_weights import WeightsReport
from trainer.run import claim
from trainer.run.checkpoint import CheckpointStore
from trainer.system import atomic, environment
from trainer.training.input import open_caches, open_features
from trainer.training.make_state import make_state
from trainer.training.ridge import solve
from trainer.training.train import has_ended_early, train


@contextlib.contextmanager
def open_run(planned: PlannedRun, note: Callable[[str], None]) -> Iterator[PlannedRun]:
    """Yields `planned` with a run directory that no other command trains in during the block.

    Raises:
        RunError: another command was quicker, or the directory cannot be written.
    """
    if not planned.topology.is_chief or options.is_worker():
        yield planned  # others write nothing; of an elastic job, who is chief is found out later
        return
    if not planned.is_run_known:
        planned = dataclasses.replace(planned, run=claim.claim_new_run(RUNS_DIR), is_run_known=True)
    with claim.hold_run(planned.run, planned.identity, note=note):
        planned.check_run_dir()  # it may have been taken since it was looked at
        yield planned


def start_run(planned: PlannedRun, note: Callable[[str], None]) -> None:
    """Checks the shards, writes down the plan and the environment, and trains to the end.

    Raises:
        DataError: a shard is not what the manifest says.
        StoppedOnRequest, TrainingError: see `train`.
    """
    if options.is_worker():
        elastic_worker.ElasticWorker(planned.plan, planned.config, planned.run, note=note).run()
        return
    with open_run(planned, note) as planned:
        _train_in(planned, note)


def _train_in(planned: PlannedRun, note: Callable[[str], None]) -> None:
    plan, config, run = planned.plan, planned.config, planned.run
    dataset_dir = parse_path(plan.dataset_dir)
    verify_shards(dataset_dir, Manifest.load(dataset_dir), ["train", "validation"])
    is_chief = planned.topology.is_chief
    engine = make_engine(planned.topology, config.distribute, note)
    job.check_workers_agree(engine, {"configuration": plan.identity(config), "dataset": plan.dataset_hash})
    store = CheckpointStore.of_run(run, config.checkpoint) if is_chief else None
    reports: list[WeightsReport] = []
    state = make_state(plan, config, engine, store, on_weights=reports.append)
    first_step = int(state.global_step.numpy())
    if is_chief:
        if first_step:
            note(f"going on with {run.path} from step {first_step} of {plan.num_train_steps}")
        for warning in plan.warnings:
            note(f"warning: {warning}")
        run.create(config, plan.run_info(config, run.path.resolve().name))
        for report in reports:
            note(report.summary())
            atomic.write_text(run.weights_file, report.model_dump_json(indent=2) + "\n")
        atomic.write_text(run.plan_file, plan.model_dump_json(indent=2) + "\n")
        atomic.write_json(run.environment_file, environment.collect(sys.argv))
    if first_step == plan.num_train_steps or (
        first_step and has_ended_early(config, run, engine, is_chief=is_chief, step=first_step)
    ):
        return
    # Before the bar of the training: of two bars on one terminal neither is readable.
    show_progress = task_progress if is_chief else show_nothing
    caches = open_caches(plan, config, progress=show_progress)
    if plan.features.is_on:
        caches = open_features(
            plan, config, engine, state.model, caches, progress=show_progress, note=note if is_chief else lambda _: None
        )
    with TrainingProgress(
        epochs=plan.epochs,
        start_step=first_step,
        global_batch_size=plan.global_batch_size,
        console=None if is_chief else Console(quiet=True),
    ) as progress:
        work = solve if config.train.solver == "ridge" else train
        work(plan, config, run, engine, state, store, caches, progress)
