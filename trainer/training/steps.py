"""Make the steps of a run: alone, many in one call; with other workers, one at a time and one ahead of its flags.

Where memory does not suffice, the same step is made again with the batch in twice as many parts, by all workers.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from trainer.data.input.batch import Batch
from trainer.distribute.engine import Engine
from trainer.distribute.launchers import heartbeat
from trainer.errors import OutOfMemoryError
from trainer.plan.stages import Stage
from trainer.step.out_of_memory import is_out_of_memory
from trainer.step.state import TrainState
from trainer.step.step_results import StepFlags, StepMetrics
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


class MemoryPolicy:
    """How many parts a batch is computed in, and whether more may be taken.

    Parts change no result, except where batch statistics are of the whole batch of a replica.
    """

    def __init__(
        self, *, num_parts: int, max_parts: int, refusal: str | None, note: Callable[[str], None] = lambda _: None
    ) -> None:
        """Start with `num_parts`, and take at most `max_parts`.

        Args:
            num_parts: the number to start with.
            max_parts: the most that a batch can be divided into.
            refusal: why more parts must not be taken, with the way out; None: they may.
            note: told in a sentence when more parts are taken.
        """
        self.num_parts, self._max_parts, self._refusal, self._note = num_parts, max_parts, refusal, note

    @property
    def can_double(self) -> bool:
        return self._refusal is None and self.num_parts < self._max_parts

    def double(self, step: int, where: str) -> None:
        """Take twice as many parts for `step` (from 1) and those after it.

        Raises:
            OutOfMemoryError: no more may be taken, or there are none.
        """
        found = f"memory did not suffice for step {step} {where} with the batch in {self.num_parts} parts"
        if self._refusal is not None:
            raise OutOfMemoryError(f"{found}; {self._refusal}")
        if self.num_parts >= self._max_parts:
            raise OutOfMemoryError(
                f"{found}, the most there are; use a smaller model.image_size_px, model.backbone or precision"
            )
        self.num_parts = min(2 * self.num_parts, self._max_parts)
        self._note(f"{found}; making it again in {self.num_parts}")


def max_parts(per_replica_batch_size: int) -> int:
    """Return the most parts of a replica's batch: pairs of examples stay together."""
    return max(1, math.ceil(per_replica_batch_size / 2))


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
        num_steps = min(num_steps, stage.stop_step - self._next_step)
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
        """Return the number of steps that were made before memory ended; their metrics are lost."""
        num_made = int(self._state.global_step.numpy()) - self._next_step
        self._next_step += num_made
        self._iterators.clear()
        self._memory.double(self._next_step + 1, "on this worker")
        self._step.use_parts(self._memory.num_parts)
        if int(self._state.is_updating.numpy()):
            raise OutOfMemoryError(
                f"memory ended while step {self._next_step} was assigned; start the same command again, which goes on "
                "from the last checkpoint"
            ) from error
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
        metrics, flags = step.finish(step.begin(batch), wants_stop=wants_stop)
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
