"""Measure the parts of a training step: waiting for input, computing, reducing over replicas, and the rest."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from trainer.data.input.batch import Batch
from trainer.distribute.engine import Engine
from trainer.step.train_step import TrainStep

Tensor = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Medians over the steps, in seconds.

    Attributes:
        step_secs: from one step to the next, including input.
        input_secs: waiting for the batch.
        compute_secs: only forward and backward.
        all_reduce_secs: only the reduction.
    """

    step_secs: float
    input_secs: float
    compute_secs: float
    all_reduce_secs: float

    @property
    def rest_secs(self) -> float:
        """The update, and the overhead or overlap of running the parts as one step."""
        return self.step_secs - self.input_secs - self.compute_secs - self.all_reduce_secs


class StepParts:
    """The forward and backward pass of a step, and its reduction, each compiled by itself; they change nothing."""

    def __init__(self, engine: Engine, step: TrainStep) -> None:
        self.compute = tf.function(lambda batch: engine.run(step.compute_gradients, batch), autograph=False)
        self.reduce = tf.function(lambda local: engine.run(step.reduce_gradients, local), autograph=False)


def time_steps(engine: Engine, step: TrainStep, batches: Iterator[Batch], *, num_steps: int) -> StepTimes:
    """Time `num_steps` whole steps, then each part alone; this advances the state.

    All workers call it together. The first call of each part, which traces and compiles, is not counted.
    """
    step_secs, input_secs = [], []
    for _ in range(num_steps + 1):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter()
        _wait_for(engine, step(batch).loss)
        step_secs.append(time.perf_counter() - started)
        input_secs.append(waited - started)
    parts = StepParts(engine, step)
    local = parts.compute(batch)
    return StepTimes(
        step_secs=statistics.median(step_secs[1:]),
        input_secs=statistics.median(input_secs[1:]),
        compute_secs=_median_secs(lambda: _wait_for(engine, parts.compute(batch).sums), num_steps),
        all_reduce_secs=_median_secs(lambda: _wait_for(engine, parts.reduce(local).sums), num_steps),
    )


def _median_secs(run: Callable[[], None], num_times: int) -> float:
    run()
    secs = []
    for _ in range(num_times):
        started = time.perf_counter()
        run()
        secs.append(time.perf_counter() - started)
    return statistics.median(secs)


def _wait_for(engine: Engine, value: Any) -> None:
    """Wait until the devices have computed `value`, by copying it to the host."""
    tf.convert_to_tensor(engine.local_values(value)[0]).numpy()
