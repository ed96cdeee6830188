"""Connect batches with the steps of each stage."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.data.input.batch import Batch
from trainer.data.input.pipeline import TrainingStream
from trainer.distribute.engine import Engine
from trainer.distribute.launchers import heartbeat
from trainer.plan.stages import Stage
from trainer.step.train_step import StepMetrics
from trainer.training.staged_step import StagedStep


def make_steps(
    stages: Sequence[Stage], engine: Engine, stream: TrainingStream, step: StagedStep, first_step: int
) -> Callable[[int], StepMetrics]:
    """Return a function that makes at most as many steps as it is told, in one call, from `first_step` on.

    A worker of a job makes one step a call: its guard sees each of them, and each is a commit of an elastic job.
    """
    if engine.topology.num_workers > 1:
        batches = staged_batches(stages, engine, stream, first_step)
        one_step = _with_heartbeat(step)
        return lambda _: one_step(next(batches))
    iterators: dict[Stage, Any] = {}

    def of_stage(num_steps: int) -> StepMetrics:
        stage = step.stage
        if stage not in iterators:
            iterators.clear()
            iterators[stage] = iter(_distribute_stage(stage, engine, stream, first_step))
        return step.run_steps(iterators[stage], num_steps)

    return of_stage


def staged_batches(stages: Sequence[Stage], engine: Engine, stream: TrainingStream, first_step: int) -> Iterator[Batch]:
    """Yield the per-replica batches of all steps from `first_step` on, in the image size of each stage of the plan."""
    for stage in stages:
        if first_step < stage.stop_step:
            yield from _distribute_stage(stage, engine, stream, first_step)


def _distribute_stage(stage: Stage, engine: Engine, stream: TrainingStream, first_step: int) -> Any:
    """Return the per-replica batches of `stage` from `first_step` on."""
    staged = stream_of_stage(stream, stage)
    return engine.distribute(staged.dataset(max(stage.start_step, first_step), stage.stop_step))


def _with_heartbeat(step: StagedStep) -> Callable[[Batch], StepMetrics]:
    """Return `step` with a heartbeat before and after it, if a guard watches this worker."""
    pulse = heartbeat.of_this_worker()
    if pulse is None:
        return step

    def beat_and_step(batch: Batch) -> StepMetrics:
        pulse.beat()
        metrics = step(batch)
        pulse.beat()
        return metrics

    return beat_and_step


def stream_of_stage(stream: TrainingStream, stage: Stage) -> TrainingStream:
    """Return the stream with images in the size of `stage`."""
    geometry = dataclasses.replace(stream.geometry, image_size_px=stage.image_size_px)
    return dataclasses.replace(stream, geometry=geometry)
