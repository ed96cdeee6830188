"""An engine whose workers agree before each step, so that a change of members interrupts no collective."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer.distribute.engine import Engine
from trainer.training.loop import StopRequest


class _AgreeingEngine:
    """Horovod's engine, with which members agree to come out of a generation where they agree on a request to stop.

    `broadcast` sends vectors without names, since those of variables depend on what a process has built before; and it
    assigns when all of them have come, so that no state is half the chief's.
    """

    def __init__(self, engine: Engine, *, is_asked_to_leave: Callable[[], bool], stop_request: StopRequest) -> None:
        self._engine = engine
        self._is_asked_to_leave, self._stop_request = is_asked_to_leave, stop_request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def any(self, flag: bool) -> bool:
        flag = flag or self._stop_request.is_set
        if not self._engine.any(flag or self._is_asked_to_leave()):
            return False
        if self._engine.any(flag):
            return True
        raise _MembersChange

    def broadcast(self, variables: list[Any]) -> None:
        dtypes = sorted({variable.dtype for variable in variables}, key=str)
        by_dtype = [[variable for variable in variables if variable.dtype == dtype] for dtype in dtypes]
        flat = [tf.concat([tf.reshape(v, [-1]) for v in same], axis=0) for same in by_dtype]
        # Only the chief puts something into the sum.
        given = flat if self._engine.topology.is_chief else [tf.zeros_like(vector) for vector in flat]
        # Grouped, and so all or none.
        for same, total in zip(by_dtype, self._engine.all_reduce_sum(given), strict=True):
            for variable, part in zip(same, tf.split(total, [tf.size(v) for v in same]), strict=True):
                variable.assign(tf.reshape(part, variable.shape))


class _MembersChange(Exception):
    """All members of the generation have agreed to come out of it."""
