"""The outer loop: it takes batches, runs steps, and calls what is due after each. All effects are in `actions`."""

import signal
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from trainer.data.batch import Batch
from trainer.errors import StoppedOnRequest
from trainer.steps import StepMetrics


class Action(Protocol):
    """Something to do after a step: log, evaluate, save. "When" is `is_due`, "what" is the call."""

    def is_due(self, step: int) -> bool: ...

    def __call__(self, step: int) -> None: ...


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second one ends the process at once."""

    def __init__(self) -> None:
        self.is_set = False

    @contextmanager
    def listen(self) -> Iterator["StopRequest"]:
        """Listens for the two signals within the block."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: types.FrameType | None) -> None:
        self.is_set = True
        signal.signal(number, signal.SIG_DFL)


def run_loop(
    *,
    batches: Iterable[Batch],
    train_step: Callable[[Batch], StepMetrics],
    first_step: int,
    on_metrics: Callable[[StepMetrics], None],
    actions: list[Action],
    save: Callable[[int], None],
    should_stop: Callable[[], bool],
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Runs a step for each batch, and after it every action that is due, in order, until they are all done or
    `is_over`. Returns the last step.

    Raises:
        StoppedOnRequest: `should_stop` said so; the state after the step that was running has been saved.
    """
    step = first_step
    for batch in batches:
        on_metrics(train_step(batch))
        step += 1
        for action in actions:
            if action.is_due(step):
                action(step)
        if is_over():
            break
        if should_stop():
            save(step)
            raise StoppedOnRequest(f"stopped after step {step}, and saved; the same command goes on from there")
    return step
