"""Decide in how many parts a batch is computed, and what to do where memory does not suffice."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from trainer.config.config import Config
from trainer.distribute.topology import part_size
from trainer.errors import OutOfMemoryError, OutOfMemoryRestart, TrainingError
from trainer.plan.plan import Plan
from trainer.run.memory_record import MemoryRecord
from trainer.run.run_dir import RunDir
from trainer.system import storage_errors
from trainer.training.context import RunContext

# Batch statistics that training changes are of the whole batch of a replica, or of all replicas.
LIVE_STATISTICS: Final = ("per_replica", "synchronized")


class MemoryPolicy:
    """How many parts a batch is computed in, and whether more may be taken.

    Parts change no result, except where batch statistics are of the whole batch of a replica.
    """

    def __init__(
        self,
        *,
        num_parts: int,
        max_parts: int,
        refusal: str | None = None,
        note: Callable[[str], None] = lambda _: None,
        on_doubled: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Start with `num_parts`, and take at most `max_parts`.

        Args:
            num_parts: the number to start with.
            max_parts: the most that a batch can be divided into.
            refusal: why more parts must not be taken, with the way out; None: they may.
            note: told in a sentence when more parts are taken.
            on_doubled: called with the new number then.
        """
        self.num_parts, self._max_parts, self._refusal = num_parts, max_parts, refusal
        self._note, self._on_doubled = note, on_doubled

    def double(self, step: int, where: str) -> None:
        """Take twice as many parts for `step` (from 1) and those after it.

        Raises:
            OutOfMemoryError: no more may be taken, or there are none.
        """
        found = self._check(step, where)
        self.num_parts = min(2 * self.num_parts, self._max_parts)
        self._note(f"{found}; making it again in {self.num_parts}")
        self._on_doubled(self.num_parts)

    def restart(self, step: int, where: str) -> OutOfMemoryRestart:
        """Return the error that ends a worker whose state is lost, or which the others wait for in a collective.

        Raises:
            OutOfMemoryError: no more may be taken, or there are none.
        """
        found = self._check(step, where)
        return OutOfMemoryRestart(
            f"{found}, and an update was under way; the same command goes on from the last checkpoint"
        )

    def _check(self, step: int, where: str) -> str:
        """Return what was found; raise OutOfMemoryError if more parts are no way out."""
        found = f"memory did not suffice for step {step} {where} with the batch in {self.num_parts} parts"
        if self._refusal is not None:
            raise OutOfMemoryError(f"{found}; {self._refusal}")
        if self.num_parts >= self._max_parts:
            raise OutOfMemoryError(
                f"{found}, the most there are; use a smaller model.image_size_px, model.backbone or precision"
            )
        return found


def max_parts(per_replica_batch_size: int) -> int:
    """Return the most parts of a replica's batch: pairs of examples stay together."""
    return max(1, math.ceil(per_replica_batch_size / 2))


def memory_policy(context: RunContext, note: Callable[[str], None]) -> MemoryPolicy:
    """Return how the run may meet a lack of memory: by more parts of the batch, where they change no result.

    All workers call this together. They start with the number that the chief finds in the run directory.
    """
    train, size = context.config.train, context.plan.replicas.per_replica_batch_size
    refusal = None
    if train.accumulate_steps != "auto":
        refusal = "use --set train.accumulate_steps=auto, which takes more by itself, or a higher number"
    elif context.state.statistics:
        refusal = (
            "its batch statistics are of the whole batch of a replica, which parts would change; use --set "
            "model.batch_norm=frozen, a smaller train.global_batch_size, or accept the change: --set "
            "train.accumulate_steps=2"
        )
    if refusal is not None:
        return MemoryPolicy(num_parts=train.num_parts, max_parts=max_parts(size), refusal=refusal)

    def record(num_parts: int) -> None:
        if not context.is_chief:
            return
        try:
            MemoryRecord(examples_per_part=part_size(size, num_parts)).write(context.run)
        except OSError as e:
            where = storage_errors.describe(e, context.run.memory_file)
            note(f"warning: the number of parts could not be saved to {where}; a resumed run will find it again")

    num_parts = parts_of_room(size, _room_of_chief(context))
    if num_parts > 1:
        file = context.run.memory_file
        note(f"each batch is computed in {num_parts} parts: memory did not suffice for fewer ({file})")
    return MemoryPolicy(num_parts=num_parts, max_parts=max_parts(size), note=note, on_doubled=record)


def parts_of_room(per_replica_batch_size: int, room: int | None) -> int:
    """Return how many parts a replica's batch is computed in, where no more than `room` examples fit at a time."""
    num_parts = 1
    while room is not None and part_size(per_replica_batch_size, num_parts) > room:
        if num_parts >= max_parts(per_replica_batch_size):
            break
        num_parts = min(2 * num_parts, max_parts(per_replica_batch_size))
    return num_parts


def take_more_parts(run: RunDir, plan: Plan, config: Config, error: OutOfMemoryRestart) -> int:
    """Record that a replica has room for half as many examples at a time, and return the number of parts from now on.

    Raises:
        TrainingError: with the text of `error`, where more parts are no way out.
    """
    size, found = plan.replicas.per_replica_batch_size, MemoryRecord.read(run)
    num_parts = parts_of_room(size, found.examples_per_part if found else None)
    changes_result = config.train.accumulate_steps != "auto" or plan.model.batch_norm in LIVE_STATISTICS
    is_elsewhere = error.is_host_memory and plan.replicas.device != "cpu"
    if changes_result or is_elsewhere or num_parts >= max_parts(size):
        raise TrainingError(str(error)) from error
    num_parts = min(2 * num_parts, max_parts(size))
    MemoryRecord(examples_per_part=part_size(size, num_parts)).write(run)
    return num_parts


def _room_of_chief(context: RunContext) -> int | None:
    found = MemoryRecord.read(context.run) if context.is_chief else None
    rooms = context.engine.gather_from_workers(np.array([found.examples_per_part if found else 0], np.int32))
    # The chief is worker 0 of every engine.
    return int(rooms[0][0]) or None
