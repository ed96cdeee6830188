"""A worker of an elastic job: it trains in one generation of members after another, and keeps its state in between.

The state in memory is always that after a whole step: a step assigns its variables when all reductions have come back.
So every step is a commit. After a change of the members the chief's state goes to all, and training goes on from its
step, with the examples that the exact order has there, whatever the number of replicas.
"""

import dataclasses
import os

import keras

from trainer.data.dataset.storage import parse_path
from trainer.distribute import horovod
from trainer.distribute.elastic.messages import End, Join, Leave, Running, Save, Waiting, of_message, to_message
from trainer.distribute.launchers import channel, heartbeat
from trainer.distribute.launchers.versions import installed_versions
from trainer.distribute.topology import Topology
from trainer.errors import DeviceError, StoppedOnRequest
from trainer.launch.elastic_engine import ElasticEngine, MembersChange
from trainer.launch.run_session import RunSession
from trainer.plan.plan import Plan, make_plan
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir
from trainer.run.unwritten_metrics import UnwrittenMetrics
from trainer.system import tf_runtime
from trainer.system.stop_signals import StopRequest
from trainer.training.actions import EvaluateAndSave, is_saving_due
from trainer.training.context import RunContext
from trainer.training.input import open_caches
from trainer.training.saved_state import save_checkpoint
from trainer.training.train import make_evaluators, open_writers, train

_LOOK_EVERY_SECS = 1.0


class ElasticWorker:
    """A worker of an elastic job, which trains in every generation that it is called to until the run is complete.

    The plan of `session` is made for any number of replicas; each generation has a plan of its own.
    """

    def __init__(self, session: RunSession) -> None:
        """Raise DeviceError if no launcher of an elastic job has started this process."""
        found = channel.of_this_worker()
        if found is None:
            raise DeviceError("only the launcher of an elastic job starts its workers; use: trainer launch")
        self._channel = found
        self._session, self._plan, self._config = session, session.planned.plan, session.config
        self._pulse = heartbeat.of_this_worker()
        self._stop_request = StopRequest()
        self._unwritten = UnwrittenMetrics()
        # The context of the present generation or of the last one, with the state in memory; None before the first.
        self._context: RunContext | None = None
        self._generation = 0
        self._is_asked_to_leave = False

    def run(self) -> None:
        """Train in each generation that this worker is called to.

        Raises:
            StoppedOnRequest: everything is saved, or this worker is not needed any more.
            DataError: a file of the dataset is not what the manifest says, or a record is damaged.
            TrainingError: see `train`.
        """
        self._session.check_dataset()
        # Before this worker joins, so that the others need not wait for it.
        self._inputs = open_caches(self._plan, self._config)
        why = ""
        with self._stop_request.listen():
            while True:
                join = self._wait_to_join(why)
                try:
                    self._train_in(join)
                except MembersChange:
                    why = ""
                except Exception as e:
                    if not horovod.is_lost_peer(e):
                        raise
                    why = " ".join(str(e).split())[:500]
                else:
                    return
                finally:
                    horovod.stop()

    def _wait_to_join(self, why: str) -> Join:
        if self._context is not None and self._context.saver is not None:
            self._context.saver.wait()
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
        run = self._session.directory
        return Waiting(
            generation=self._generation,
            step=None if self._context is None else self._context.step,
            checkpoint_step=max(CheckpointStore.of_run(run, self._config.checkpoint).steps(), default=0),
            run_dir_token=_run_dir_token(run),
            facts={**self._session.facts, **installed_versions()},
            why=why,
        )

    def _train_in(self, join: Join) -> None:
        context = self._begin(join)
        if (join.from_checkpoint and self._session.has_ended(context)) or self._finish_step(context):
            context.engine.barrier()
            return
        with self._session.show_progress(context) as progress:
            train(context, self._inputs, progress, [self._unwritten])

    def _begin(self, join: Join) -> RunContext:
        """Meet the other members of the generation and take over the state of its chief."""
        os.environ.update(join.environment)
        settings = self._config.distribute
        found = horovod.start("cpu", fusion_bytes=settings.fusion_bytes, cycle_time_ms=settings.cycle_time_ms)
        topology = dataclasses.replace(found, device=self._plan.replicas.device)
        plan = self._plan_for(topology)
        engine = ElasticEngine(topology, is_asked_to_leave=self._hear_of_leaving, stop_request=self._stop_request)
        if topology.is_chief:
            self._session.lock()
        if join.from_checkpoint:
            self._context = None
        if self._context is None:
            keras.utils.clear_session()
        kept = None if self._context is None else self._context.state
        self._context = self._session.begin(plan, engine, kept, is_first=self._generation == 1)
        step = self._context.step
        run_dir_token = _run_dir_token(self._session.directory) if topology.is_chief else 0
        self._channel.say(to_message(Running(generation=join.generation, step=step, run_dir_token=run_dir_token)))
        if self._pulse is not None:
            self._pulse.move_to(2 * step + 2)
        return self._context

    def _plan_for(self, topology: Topology) -> Plan:
        capabilities = tf_runtime.list_compute_capabilities(tf_runtime.list_gpus()[:1])
        found = make_plan(self._config, parse_path(self._plan.data.dataset_dir), topology, capabilities)
        # The caches are open already, whatever memory is free by now.
        return found.model_copy(update={"data": self._plan.data})

    def _hear_of_leaving(self) -> bool:
        for message in self._channel.hear():
            said = of_message(message)
            if isinstance(said, Leave) and said.generation == self._generation:
                self._is_asked_to_leave = True
        return self._is_asked_to_leave

    def _finish_step(self, context: RunContext) -> bool:
        """Do what the last chief left undone after its step: its lines in the log, its evaluation, its checkpoint.

        Returns:
            True if the run ends with that evaluation.
        """
        step, saver = context.step, context.saver
        is_open = saver is not None and step > 0 and is_saving_due(context.plan, step) and saver.newest_step != step
        is_open = context.engine.any(is_open)
        if context.is_chief:
            self._unwritten.complete(context.run, step, is_step_open=is_open)
        if not is_open:
            return False
        evaluators = make_evaluators(context, self._inputs)
        with (
            self._session.show_progress(context) as progress,
            open_writers(context, step, [self._unwritten]) as writers,
        ):
            saving = EvaluateAndSave(context, evaluators=evaluators, writers=writers, progress=progress)
            saving(step)
            save_checkpoint(context, step, is_last=True)
        return saving.is_over

    def _save(self) -> None:
        """Write a checkpoint of the state in memory, without the others."""
        if self._context is None:
            return
        run, step = self._session.directory, self._context.step
        self._unwritten.complete(run, step, is_step_open=False)
        save_checkpoint(dataclasses.replace(self._context, saver=self._session.make_saver()), step, is_last=True)
        self._session.note(f"saved step {step} of {self._plan.schedule.num_train_steps}")


def _run_dir_token(run: RunDir) -> int:
    """Return when the plan was written, to tell apart directories of one path on different disks; 0 if it is not."""
    try:
        return int(run.plan_file.stat().st_mtime_ns)
    except OSError:
        return 0
