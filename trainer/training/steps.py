"""Make the steps of a run: alone, many in one call; with other workers, one at a time and one ahead of its flags.

Where memory does not suffice, the same step is made again with the batch in twice as many parts, by all workers.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from trainer.data.input.batch import Batch
from trainer.distribute.engine import Engine
from trainer.distribute.launchers import heartbeat
from trainer.plan.stages import Stage
from trainer.step.out_of_memory import is_out_of_memory
from trainer.step.state import TrainState
from trainer.step.step_results import StepFlags, StepMetrics
from trainer.step.train_step import MAX_STEPS_AT_ONCE
from trainer.training.memory import MemoryPolicy
from trainer.training.staged_step import StagedStep

# After all workers know that one of them wants to stop, they make one more step together.
_STEPS_AHEAD = 1


class Steps(Protocol):
    """The steps of this worker, in order."""

    def make(self, num_steps: int) -> int:
        """Make at most `num_steps` steps and return how many were made; their metrics may be known later."""

    def settle(self) -> list[StepMetrics]:
        """Return the metrics of the steps since the last call, once all of these are known to stand."""

    def is_stop_due(self, step: int) -> bool:
        """Return True if a stop after `step` was asked for; the same on all workers that have made as many steps."""

    def agree_to_stop(self) -> bool:
        """Return True if the run stops here; called on all workers after a step after which a stop is due."""


class LoneSteps:
    """The steps of the only worker: many in one compiled loop, which nobody waits for."""

    def __init__(
        self,
        step: StagedStep,
        iterator_from: Callable[[Stage, int], Iterator[Batch]],
        *,
        engine: Engine,
        state: TrainState,
        memory: MemoryPolicy,
        wants_stop: Callable[[], bool],
    ) -> None:
        """Make the steps from that of `state` on; `iterator_from` returns the batches of a stage from a step on."""
        self._step, self._iterator_from, self._state, self._memory = step, iterator_from, state, memory
        self._engine, self._wants_stop = engine, wants_stop
        self._next_step = int(state.global_step.numpy())
        self._iterators: dict[Stage, Any] = {}
        self._made: list[StepMetrics] = []

    def make(self, num_steps: int) -> int:
        stage = self._step.stage_of(self._next_step)
        if stage not in self._iterators:
            self._iterators = {stage: self._iterator_from(stage, self._next_step)}
        num_steps = min(num_steps, stage.stop_step - self._next_step, MAX_STEPS_AT_ONCE)
        try:
            metrics = self._step.at(self._next_step).run_steps(self._iterators[stage], num_steps)
        except tf.errors.OpError as e:
            if not is_out_of_memory(e):
                raise
            return self._take_more_parts(e)
        self._next_step += num_steps
        self._made.append(metrics)
        return num_steps

    def _take_more_parts(self, error: Exception) -> int:
        """Return the number of steps that were made before memory ended."""
        num_made = int(self._state.global_step.numpy()) - self._next_step
        if int(self._state.is_updating.numpy()):
            lost = self._memory.restart(self._next_step + num_made, "on this worker")
            self._memory.double(self._next_step + num_made, "on this worker")
            raise lost from error
        if num_made:
            self._made.append(self._step.at(self._next_step).first_metrics(num_made))
        self._next_step += num_made
        self._iterators.clear()
        self._memory.double(self._next_step + 1, "on this worker")
        self._step.use_parts(self._memory.num_parts)
        return num_made

    def settle(self) -> list[StepMetrics]:
        made, self._made = self._made, []
        return made

    def is_stop_due(self, step: int) -> bool:
        return self._engine.wants_stop(self._wants_stop())

    def agree_to_stop(self) -> bool:
        return self._engine.agrees_to_stop(self._wants_stop())


class _OpenStep(NamedTuple):
    """A step that has been asked of the devices, and whose flags nobody has looked at."""

    number: int
    batch: Batch
    metrics: StepMetrics
    flags: StepFlags


class WorkerSteps:
    """The steps of a worker among others.

    The flags of a step (does a worker want to stop, had one too little memory) travel with its gradients. They are
    read when the next step has been asked of the devices, so that the host never waits for the step that runs; since
    all workers read the flags of the same step, they decide alike.
    """

    def __init__(
        self,
        step: StagedStep,
        batches: Iterator[Batch],
        *,
        engine: Engine,
        state: TrainState,
        memory: MemoryPolicy,
        wants_stop: Callable[[], bool],
    ) -> None:
        self._step, self._batches, self._engine, self._memory = step, batches, engine, memory
        self._wants_stop = wants_stop
        self._next_step = int(state.global_step.numpy())
        self._open: deque[_OpenStep] = deque()
        self._settled: list[StepMetrics] = []
        self._stop_after: int | None = None
        self._pulse = heartbeat.of_this_worker()
        state.is_withheld.assign(0)

    def make(self, num_steps: int) -> int:
        batch = next(self._batches)
        self._beat()
        self._ask_for(self._next_step, batch)
        self._next_step += 1
        while len(self._open) > _STEPS_AHEAD:
            self._look_at_oldest()
        self._beat()
        return 1

    def _ask_for(self, number: int, batch: Batch) -> None:
        step = self._step.at(number)
        wants_stop = self._engine.wants_stop(self._wants_stop())
        try:
            metrics, flags = step.finish(step.begin(batch), wants_stop=wants_stop)
        except tf.errors.OpError as e:
            if not is_out_of_memory(e):
                raise
            raise self._memory.restart(number + 1, "on this worker") from e
        self._open.append(_OpenStep(number, batch, metrics, flags))

    def _look_at_oldest(self) -> None:
        number, _, metrics, flags = self._open[0]
        if num_replicas := int(flags.is_out_of_memory.numpy()):
            self._make_again(number, num_replicas)
            return
        self._open.popleft()
        self._settled.append(metrics)
        if flags.wants_stop.numpy() > 0 and self._stop_after is None:
            self._stop_after = number + 1 + _STEPS_AHEAD

    def _make_again(self, number: int, num_replicas: int) -> None:
        """Make all open steps again, none of which has changed the state, in more parts."""
        self._memory.double(number + 1, f"on {num_replicas} of {self._engine.topology.num_replicas} replicas")
        self._step.use_parts(self._memory.num_parts)
        self._step.at(number).make_again()
        again = [(each.number, each.batch) for each in self._open]
        self._open.clear()
        for open_number, batch in again:
            self._ask_for(open_number, batch)

    def _beat(self) -> None:
        """Tell the guard of this worker, if there is one, that a batch was there, and that its step was made."""
        if self._pulse is not None:
            self._pulse.beat()

    def settle(self) -> list[StepMetrics]:
        while self._open:
            self._look_at_oldest()
        settled, self._settled = self._settled, []
        return settled

    def is_stop_due(self, step: int) -> bool:
        return self._stop_after is not None and step >= self._stop_after

    def agree_to_stop(self) -> bool:
        # One engine has more than one reason, and asks all workers for it.
        return self._engine.agrees_to_stop(self._wants_stop())
