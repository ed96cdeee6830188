"""The outer loop: it makes steps, and calls what is due after them. All effects are in `actions`."""

import signal
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from trainer.errors import StoppedOnRequest
from trainer.step.evaluation_step import steps_at_once
from trainer.step.train_step import StepMetrics


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
    make_steps: Callable[[int], StepMetrics],
    first_step: int,
    last_step: int,
    on_metrics: Callable[[StepMetrics], None],
    actions: list[Action],
    save: Callable[[int], None],
    should_stop: Callable[[], bool],
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Makes steps, and after them every action that is due, in order, up to `last_step` or until it `is_over`. Returns
    the last step made.

    `make_steps` makes at most as many steps as it is told, in one call; no action is due before the last of them.

    Raises:
        StoppedOnRequest: `should_stop` said so; the state after the steps that were running has been saved.
    """
    step, num_at_once = first_step, 1
    while step < last_step:
        started_secs = time.monotonic()
        metrics = make_steps(min(num_at_once, _steps_until_due(step, last_step, actions)))
        # The first call is traced and compiled: the next one is timed with one step as well.
        if step > first_step:
            num_at_once = steps_at_once(time.monotonic() - started_secs, metrics.num_steps)
        on_metrics(metrics)
        step += metrics.num_steps
        for action in actions:
            if action.is_due(step):
                action(step)
        if is_over():
            break
        if should_stop():
            save(step)
            raise StoppedOnRequest(f"stopped after step {step}, and saved; the same command goes on from there")
    return step


def _steps_until_due(step: int, last_step: int, actions: list[Action]) -> int:
    for later in range(step + 1, last_step):
        if any(action.is_due(later) for action in actions):
            return later - step
    return last_step - step
