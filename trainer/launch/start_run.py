"""Train a planned run to the end: in this process, or in workers that it starts."""

from collections.abc import Callable, Sequence

from trainer.distribute.elastic import options
from trainer.errors import OutOfMemoryRestart
from trainer.launch import job
from trainer.launch.elastic_worker import ElasticWorker
from trainer.launch.plan_run import PlannedRun
from trainer.launch.run_session import RunSession
from trainer.run.claim import naming_this_command
from trainer.training.memory import take_more_parts


def start_run(planned: PlannedRun, note: Callable[[str], None]) -> None:
    """Hold the run directory of `planned` and train in this process.

    Raises:
        RunError: see `RunSession.open`.
        DataError, StoppedOnRequest, TrainingError: see `RunSession.run`.
    """
    with RunSession.open(planned, note) as session:
        _train_here(session)


def train_session(session: RunSession, arguments: Sequence[str]) -> None:
    """Train in this process, or start the workers of the planned run and wait for them.

    Args:
        session: an open session.
        arguments: the arguments of `trainer launch` that led to it, from the word "launch" on; workers get them too.

    Raises:
        StoppedOnRequest, TrainingError, DataError: see `RunSession.run` and `Supervisor.run`.
    """
    planned = session.planned
    if not planned.worker_slots:
        _train_here(session)
        return
    passed_on = job.worker_arguments(
        arguments,
        run_dir=planned.run.path.resolve(),
        dataset_dir=planned.plan.data.dataset_dir,
        recipe=planned.recipe,
        devices=planned.device_arguments,
    )
    with naming_this_command():
        while True:
            try:
                job.run_workers(
                    planned.worker_slots, planned.config.distribute, arguments=passed_on, run_dir=planned.run.path
                )
            except OutOfMemoryRestart as e:
                num_parts = take_more_parts(planned.run, planned.plan, planned.config, e)
                again = f"starting the workers again from the last checkpoint, with each batch in {num_parts} parts"
                session.note(f"{e}\n{again}")
            else:
                return


def _train_here(session: RunSession) -> None:
    if options.is_worker():
        ElasticWorker(session).run()
    else:
        session.run()
