"""Connect batches with the steps of each stage."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.data.input.batch import Batch
from trainer.data.input.pipeline import TrainingStream
from trainer.distribute.engine import Engine
from trainer.plan.plan import Plan
from trainer.plan.stages import Stage
from trainer.step.state import TrainState
from trainer.training.memory import MemoryPolicy
from trainer.training.staged_step import StagedStep
from trainer.training.steps import LoneSteps, Steps, WorkerSteps


def make_steps(
    plan: Plan,
    engine: Engine,
    stream: TrainingStream,
    step: StagedStep,
    *,
    state: TrainState,
    memory: MemoryPolicy,
    wants_stop: Callable[[], bool] = lambda: False,
) -> Steps:
    """Return the steps of this worker from the step of `state` on.

    A worker of a job makes one step a call: its guard sees each of them, and each is a commit of an elastic job.
    """
    stages, first_step = plan.schedule.stages, int(state.global_step.numpy())
    if engine.topology.num_workers > 1:
        batches = staged_batches(stages, engine, stream, first_step)
        return WorkerSteps(step, batches, engine=engine, state=state, memory=memory, wants_stop=wants_stop)
    return LoneSteps(
        step,
        lambda stage, first: iter(_distribute_stage(stage, engine, stream, first)),
        engine=engine,
        state=state,
        memory=memory,
        wants_stop=wants_stop,
    )


def staged_batches(stages: Sequence[Stage], engine: Engine, stream: TrainingStream, first_step: int) -> Iterator[Batch]:
    """Yield the per-replica batches of all steps from `first_step` on, in the image size of each stage of the plan."""
    for stage in stages:
        if first_step < stage.stop_step:
            yield from _distribute_stage(stage, engine, stream, first_step)


def _distribute_stage(stage: Stage, engine: Engine, stream: TrainingStream, first_step: int) -> Any:
    """Return the per-replica batches of `stage` from `first_step` on."""
    staged = stream_of_stage(stream, stage)
    return engine.distribute(staged.dataset(max(stage.start_step, first_step), stage.stop_step))


def stream_of_stage(stream: TrainingStream, stage: Stage) -> TrainingStream:
    """Return the stream with images in the size of `stage`."""
    geometry = dataclasses.replace(stream.geometry, image_size_px=stage.image_size_px)
    return dataclasses.replace(stream, geometry=geometry)
