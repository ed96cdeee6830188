"""A worker of an elastic job: it trains in one generation of members after another, and keeps its state in between.

The state in memory is always that after a whole step: a step assigns its variables when all reductions have come back.
So every step is a commit. After a change of the members the chief's state goes to all, and training goes on from its
step, with the examples that the exact order has there, whatever the number of replicas.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import cast

import keras
import tensorflow as tf
from rich.console import Console

from trainer.config.config import Config
from trainer.console.progress import TrainingProgress
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.records import verify_shards
from trainer.data.dataset.storage import parse_path
from trainer.distribute import horovod
from trainer.distribute.elastic.messages import End, Join, Leave, Running, Save, Waiting, of_message, to_message
from trainer.distribute.engine import Engine
from trainer.distribute.launchers import channel, heartbeat
from trainer.distribute.launchers.versions import installed_versions
from trainer.distribute.topology import Topology
from trainer.errors import DeviceError, StoppedOnRequest
from trainer.launch.elastic_engine import _AgreeingEngine, _MembersChange
from trainer.model.match_weights import WeightsReport
from trainer.plan.plan import Plan, make_plan
from trainer.run.checkpoint import CheckpointStore
from trainer.run.claim import hold_run
from trainer.run.metric_writers import MetricsLog, MetricWriter, MetricWriters, TensorBoardWriter
from trainer.run.run_dir import RunDir
from trainer.run.unwritten_metrics import LastLines
from trainer.step.state import TrainState
from trainer.system import atomic, environment, tf_runtime
from trainer.training.actions import EvaluateAndSave
from trainer.training.input import make_validation_stream, open_caches
from trainer.training.loop import StopRequest
from trainer.training.make_state import make_state
from trainer.training.train import has_ended_early, make_evaluators, train

_LOOK_EVERY_SECS = 1.0


class ElasticWorker:
    """Trains `plan`, made for any number of replicas, until it is complete or this worker is not needed any more."""

    def __init__(self, plan: Plan, config: Config, run: RunDir, *, note: Callable[[str], None]) -> None:
        found = channel.of_this_worker()
        if found is None:
            raise DeviceError("only the launcher of an elastic job starts its workers; use: trainer launch")
        self._channel = found
        self._plan, self._config, self._run, self._note = plan, config, run, note
        self._pulse = heartbeat.of_this_worker()
        self._stop_request = StopRequest()
        self._last_lines = LastLines()
        self._state: TrainState | None = None
        self._weights_reports: list[WeightsReport] = []
        self._generation = 0
        self._is_asked_to_leave = False
        self._holding = contextlib.ExitStack()
        self._is_holding = False

    def run(self) -> None:
        """Trains in each generation that this worker is called to.

        Raises:
            StoppedOnRequest: everything is saved, or this worker is not needed any more.
            DataError: a shard is not what the manifest says.
            TrainingError: see `train`.
        """
        dataset_dir = parse_path(self._plan.dataset_dir)
        verify_shards(dataset_dir, Manifest.load(dataset_dir), ["train", "validation"])
        # Before this worker joins, so that the others need not wait for it.
        self._caches = open_caches(self._plan, self._config)
        why = ""
        with self._stop_request.listen(), self._holding:
            while True:
                join = self._wait_to_join(why)
                try:
                    self._train_in(join)
                except _MembersChange:
                    why = ""
                except Exception as e:
                    if not _is_lost_peer(e):
                        raise
                    why = " ".join(str(e).split())[:500]
                else:
                    return
                finally:
                    horovod.stop()

    def _wait_to_join(self, why: str) -> Join:
        self._channel.say(to_message(self._describe(why)))
        while self._channel.is_open:
            if self._pulse is not None:
                self._pulse.beat()
            for message in self._channel.hear(_LOOK_EVERY_SECS):
                said = of_message(message)
                if isinstance(said, Join):
                    self._generation, self._is_asked_to_leave = said.generation, False
                    return said
                if isinstance(said, Save):
                    self._save()
                elif isinstance(said, End):
                    raise StoppedOnRequest("this worker is not needed any more")
        raise StoppedOnRequest("the launcher is gone")

    def _describe(self, why: str) -> Waiting:
        return Waiting(
            generation=self._generation,
            step=None if self._state is None else int(self._state.global_step.numpy()),
            checkpoint_step=max(CheckpointStore.of_run(self._run, self._config.checkpoint).steps(), default=0),
            mark=_mark_of(self._run),
            facts={
                "configuration": self._plan.identity(self._config),
                "dataset": self._plan.dataset_hash,
                **installed_versions(),
            },
            why=why,
        )

    def _train_in(self, join: Join) -> None:
        os.environ.update(join.environment)
        settings = self._config.distribute
        found = horovod.start("cpu", fusion_bytes=settings.fusion_bytes, cycle_time_ms=settings.cycle_time_ms)
        topology = dataclasses.replace(found, device=self._plan.device)
        plan = self._plan_for(topology)
        engine = cast(
            Engine,
            _AgreeingEngine(
                horovod.make_engine(topology), is_asked_to_leave=self._hear_of_leaving, stop_request=self._stop_request
            ),
        )
        store = CheckpointStore.of_run(self._run, self._config.checkpoint) if topology.is_chief else None
        if topology.is_chief:
            self._hold_run()
        if join.from_checkpoint:
            self._state = None
        if self._state is None:
            keras.utils.clear_session()
            self._state = make_state(plan, self._config, engine, store, on_weights=self._weights_reports.append)
        else:
            engine.broadcast(self._state.variables)
        step = int(self._state.global_step.numpy())
        if topology.is_chief:
            self._write_down(plan, step)
        self._channel.say(
            to_message(
                Running(generation=join.generation, step=step, mark=_mark_of(self._run) if topology.is_chief else 0)
            )
        )
        if self._pulse is not None:
            self._pulse.move_to(2 * step + 2)
        is_early_end = (
            join.from_checkpoint
            and step > 0
            and has_ended_early(self._config, self._run, engine, is_chief=store is not None, step=step)
        )
        if is_early_end or (join.from_checkpoint and step == plan.num_train_steps):
            engine.barrier()
            return
        self._finish_step(plan, engine, store, step)
        with self._show_progress(plan, step, is_chief=topology.is_chief) as progress:
            train(plan, self._config, self._run, engine, self._state, store, self._caches, progress, [self._last_lines])

    def _hold_run(self) -> None:
        """Shares the run directory with the processes of this job, from the first time as its chief on."""
        if not self._is_holding:
            self._is_holding = True
            self._holding.enter_context(hold_run(self._run, self._plan.identity(self._config), note=self._note))

    def _plan_for(self, topology: Topology) -> Plan:
        capabilities = tf_runtime.list_compute_capabilities(tf_runtime.list_gpus()[:1])
        found = make_plan(self._config, parse_path(self._plan.dataset_dir), topology, capabilities)
        # The caches are open, whatever memory is free by now.
        kept = {name: getattr(self._plan, name) for name in Plan.model_fields if "cache" in name}
        return found.model_copy(update=kept)

    def _hear_of_leaving(self) -> bool:
        for message in self._channel.hear():
            said = of_message(message)
            if isinstance(said, Leave) and said.generation == self._generation:
                self._is_asked_to_leave = True
        return self._is_asked_to_leave

    def _write_down(self, plan: Plan, step: int) -> None:
        if step and self._generation == 1:
            self._note(f"going on with {self._run.path} from step {step} of {plan.num_train_steps}")
        for warning in plan.warnings:
            self._note(f"warning: {warning}")
        self._run.create(self._config, plan.run_info(self._config, self._run.path.resolve().name))
        while self._weights_reports:
            report = self._weights_reports.pop()
            self._note(report.summary())
            atomic.write_text(self._run.weights_file, report.model_dump_json(indent=2) + "\n")
        atomic.write_text(self._run.plan_file, plan.model_dump_json(indent=2) + "\n")
        atomic.write_json(self._run.environment_file, environment.collect(sys.argv))

    def _finish_step(self, plan: Plan, engine: Engine, store: CheckpointStore | None, step: int) -> None:
        """Does what the last chief has left undone of `step`: its lines in the log, its evaluation, its checkpoint."""
        assert self._state is not None, "there since the generation began"
        with self._show_progress(plan, step, is_chief=store is not None) as progress:
            writers = MetricWriters([self._last_lines])
            saving = self._make_saving(plan, engine, store, writers, progress)
            is_open = store is not None and step > 0 and saving.is_due(step) and step not in store.steps()
            is_open = engine.any(is_open)
            if store is not None:
                self._last_lines.complete(self._run, step, is_step_open=is_open)
            if not is_open:
                return
            all_writers: list[MetricWriter] = [self._last_lines]
            if store is not None:
                all_writers += [MetricsLog(self._run.metrics_file), TensorBoardWriter(self._run.tensorboard_dir)]
            with MetricWriters(all_writers) as writers:
                self._make_saving(plan, engine, store, writers, progress)(step)

    def _make_saving(
        self,
        plan: Plan,
        engine: Engine | None,
        store: CheckpointStore | None,
        writers: MetricWriters,
        progress: TrainingProgress,
    ) -> EvaluateAndSave:
        assert self._state is not None, "there is something to save"
        evaluators = {}
        if engine is not None:
            validation = make_validation_stream(plan, self._config, engine.topology, self._caches)
            evaluators = make_evaluators(plan, engine, self._state, validation)
        return EvaluateAndSave(
            plan=plan,
            identity=plan.identity(self._config),
            state=self._state,
            store=store,
            evaluators=evaluators,
            writers=writers,
            progress=progress,
            leave_out=lambda _: None,
        )

    def _save(self) -> None:
        """Writes a checkpoint of the state in memory, without the others."""
        if self._state is None:
            return
        step = int(self._state.global_step.numpy())
        self._last_lines.complete(self._run, step, is_step_open=False)
        with self._show_progress(self._plan, step, is_chief=False) as progress:
            store = CheckpointStore.of_run(self._run, self._config.checkpoint)
            self._make_saving(self._plan, None, store, MetricWriters([]), progress).save(step)
        self._note(f"saved step {step} of {self._plan.num_train_steps}")

    def _show_progress(self, plan: Plan, step: int, *, is_chief: bool) -> TrainingProgress:
        return TrainingProgress(
            epochs=plan.epochs,
            start_step=step,
            global_batch_size=plan.global_batch_size,
            console=None if is_chief else Console(quiet=True),
        )


def _mark_of(run: RunDir) -> int:
    """Tells one run directory from another of the same path on another disk: when its plan was written."""
    try:
        return int(run.plan_file.stat().st_mtime_ns)
    except OSError:
        return 0


def _is_lost_peer(error: Exception) -> bool:
    """Whether a collective failed, or was given up because another worker is gone."""
    return isinstance(error, tf.errors.OpError) and "Horovod" in str(error)
