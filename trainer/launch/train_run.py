"""Train from a plan to the end: in this process, or in workers that it starts."""

from collections.abc import Callable, Sequence

from trainer.launch import job
from trainer.launch.plan_run import PlannedRun
from trainer.launch.start_run import start_run
from trainer.run.claim import naming_this_command


def train_planned(planned: PlannedRun, arguments: Sequence[str], note: Callable[[str], None]) -> None:
    """Train in this process, or start the workers of `planned` and wait for them.

    Args:
        planned: a run whose directory is held; see `open_run`.
        arguments: those of `trainer launch` that led to `planned`, from the word "launch" on; workers are given them.
        note: called with a sentence where something is worth telling.

    Raises:
        StoppedOnRequest, TrainingError, DataError: see `start_run` and `Supervisor.run`.
    """
    if not planned.places:
        start_run(planned, note)
        return
    passed_on = job.worker_arguments(
        arguments,
        run_dir=planned.run.path.resolve(),
        dataset_dir=planned.plan.dataset_dir,
        recipe=planned.recipe,
        devices=planned.device_arguments,
    )
    with naming_this_command():
        job.run_workers(planned.places, planned.config.distribute, arguments=passed_on, run_dir=planned.run.path)
