"""A run in this process, from the lock on its directory to its last checkpoint."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator

from rich.console import Console

from trainer.config.config import Config
from trainer.console.progress import TrainingProgress, task_progress
from trainer.console.task_progress import show_nothing
from trainer.data.dataset.checks import check_splits
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.storage import parse_path
from trainer.distribute.elastic import options
from trainer.distribute.engine import Engine
from trainer.launch import job
from trainer.launch.extension import find_extension
from trainer.launch.plan_run import RUNS_DIR, PlannedRun
from trainer.launch.replicas import make_engine
from trainer.model.match_weights import WeightsReport
from trainer.plan.plan import Plan
from trainer.run import claim
from trainer.run.checkpoint_saver import CheckpointSaver
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir
from trainer.step.state import TrainState
from trainer.system import atomic, environment
from trainer.training.context import RunContext
from trainer.training.early_stopping import has_ended_early
from trainer.training.input import TrainInputs, open_caches, open_features
from trainer.training.make_state import make_state
from trainer.training.ridge import solve
from trainer.training.train import train_with_rollbacks


class RunSession:
    """A planned run in this process: the lock on its directory, its start-up files, its inputs and its training.

    Every strategy trains through one. `run` is the whole of a job of fixed size. A worker of an elastic job
    (`elastic_worker.py`) opens one session as well, and calls `begin` in every generation of members.
    """

    def __init__(self, planned: PlannedRun, note: Callable[[str], None], lock: contextlib.ExitStack) -> None:
        """Use `RunSession.open`, which releases the `lock`."""
        self.planned = planned
        self.note = note
        self._lock = lock
        self._is_locked = False
        self._weights_reports: list[WeightsReport] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, planned: PlannedRun, note: Callable[[str], None]) -> Iterator["RunSession"]:
        """Open a session; on the chief, no other command trains in the run directory until it is closed.

        Workers that are not the chief write nothing and lock nothing. Which worker of an elastic job is the chief
        changes with its generations: it calls `lock` once it is.

        Raises:
            RunError: another command was quicker, or the directory cannot be written.
        """
        with contextlib.ExitStack() as lock:
            session = cls(planned, note, lock)
            if planned.topology.is_chief and not options.is_worker():
                if not planned.is_run_known:
                    run = claim.claim_new_run(RUNS_DIR)
                    session.planned = dataclasses.replace(planned, run=run, is_run_known=True)
                session.lock()
                # It was checked when the run was planned, and may have been taken since.
                session.planned.check_run_dir()
            yield session

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.planned.config

    @property
    def directory(self) -> RunDir:
        """The run directory."""
        return self.planned.run

    @property
    def facts(self) -> dict[str, str]:
        """The facts of the run that must be the same on all workers."""
        return {"configuration": self.planned.identity, "dataset": self.planned.plan.data.dataset_hash}

    def lock(self) -> None:
        """Lock the run directory for this command until the session is closed; does nothing if it is locked.

        Raises:
            RunError: another command holds it, or it cannot be written.
        """
        if not self._is_locked:
            self._lock.enter_context(
                claim.hold_run(self.directory, self.planned.identity, note=self.note, wait_secs=self.planned.wait_secs)
            )
            self._is_locked = True

    def run(self) -> None:
        """Train from the last checkpoint, or from the start, to the end of the plan.

        Raises:
            DataError: a file of the dataset is not what the manifest says, or a record is damaged.
            ConfigError: the workers differ in their configuration, dataset or installation.
            StoppedOnRequest, TrainingError: see `train`.
        """
        self.check_dataset()
        engine = make_engine(self.planned.topology, self.config.distribute, self.note)
        job.check_workers_agree(engine, self.facts)
        context = self.begin(self.planned.plan, engine)
        if self.has_ended(context):
            return
        # Before the progress bar of the training: of two bars on one terminal neither is readable.
        inputs = self.open_inputs(context)
        with self.show_progress(context) as progress:
            if self.config.train.solver == "ridge":
                solve(context, inputs, progress)
            else:
                train_with_rollbacks(context, inputs, progress)

    def check_dataset(self) -> None:
        """Raise DataError if a file of the training or validation split is missing, or visibly changed.

        This takes the same time for any number of bytes; records are checked when they are read.
        """
        dataset_dir = parse_path(self.planned.plan.data.dataset_dir)
        check_splits(dataset_dir, Manifest.load(dataset_dir), ["train", "validation"])

    def begin(
        self, plan: Plan, engine: Engine, state: TrainState | None = None, *, is_first: bool = True
    ) -> RunContext:
        """Restore or create the training state on all workers of `engine`; write the start-up files as the chief.

        Args:
            plan: the plan for the replicas of `engine`.
            engine: connects this worker with the others, all of which call this together.
            state: the state that this worker kept from an earlier generation, which takes the values of the chief's;
                None: start from the chief's last checkpoint, or from initial or pretrained weights.
            is_first: False in the later generations of an elastic job, which are no resumed run.
        """
        saver = self.make_saver() if engine.topology.is_chief else None
        if saver is not None and state is None:
            self._take_further(plan, saver.store)
        if state is None:
            store = saver.store if saver else None
            state = make_state(
                plan, self.config, engine, store, on_weights=self._weights_reports.append, note=self.note
            )
        else:
            engine.broadcast(state.variables)
        context = RunContext(plan=plan, config=self.config, run=self.directory, engine=engine, state=state, saver=saver)
        if context.is_chief:
            if context.step and is_first:
                self.note(
                    f"going on with {self.directory.path} from step {context.step} of {plan.schedule.num_train_steps}"
                )
            for warning in plan.warnings:
                self.note(f"warning: {warning}")
            self._write_start_up_files(plan)
        return context

    def _take_further(self, plan: Plan, store: CheckpointStore) -> None:
        """Make a run that was planned for other epochs one of the epochs asked for; does nothing if they are the same.

        A kill leaves it as the one or the other, each of which has the checkpoints that it would have had.
        """
        if extension := find_extension(self.directory, self.config, plan):
            self.note(extension.describe(self.directory, self.config))
            store.clear_after(extension.first_step)
            self._create(plan)

    def _create(self, plan: Plan) -> None:
        self.directory.create(self.config, plan.run_info(self.config, self.directory.path.resolve().name))

    def make_saver(self) -> CheckpointSaver:
        """Return what writes the checkpoints of the run, for a worker that is the chief."""
        return CheckpointSaver(CheckpointStore.of_run(self.directory, self.config.checkpoint), self.note)

    def _write_start_up_files(self, plan: Plan) -> None:
        run = self.directory
        self._create(plan)
        while self._weights_reports:
            report = self._weights_reports.pop()
            self.note(report.summary())
            atomic.write_text(run.weights_file, report.model_dump_json(indent=2) + "\n")
        atomic.write_text(run.plan_file, plan.model_dump_json(indent=2) + "\n")
        atomic.write_json(run.environment_file, environment.collect(sys.argv))

    def has_ended(self, context: RunContext) -> bool:
        """Return True if the last checkpoint is the end of the run: its last step, or the end by `train.patience`."""
        step = context.step
        return step == context.plan.schedule.num_train_steps or (step > 0 and has_ended_early(context, step))

    def open_inputs(self, context: RunContext) -> TrainInputs:
        """Open the image caches and the features of the plan; compute those that do not exist."""
        progress = task_progress if context.is_chief else show_nothing
        inputs = open_caches(context.plan, context.config, progress=progress)
        if not context.plan.features.is_on:
            return inputs
        return open_features(
            context.plan,
            context.config,
            context.engine,
            context.state.model,
            inputs,
            progress=progress,
            note=self.note if context.is_chief else lambda _: None,
        )

    def show_progress(self, context: RunContext) -> TrainingProgress:
        """Return the progress bar of the training, which only the chief shows."""
        return TrainingProgress(
            epochs=context.plan.epochs,
            start_step=context.step,
            global_batch_size=context.plan.replicas.global_batch_size,
            console=None if context.is_chief else Console(quiet=True),
        )
