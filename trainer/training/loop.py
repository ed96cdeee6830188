"""The outer loop: it makes steps, and calls the actions that are due after them."""

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
    """An action after a step, such as logging, evaluating or saving; the call does it."""

    def is_due(self, step: int) -> bool:
        """Return True if the action is to be called after `step`."""

    def __call__(self, step: int) -> None: ...


class StopRequest:
    """A flag that the first SIGINT or SIGTERM sets; the second one ends the process at once."""

    def __init__(self) -> None:
        self.is_set = False

    @contextmanager
    def listen(self) -> Iterator["StopRequest"]:
        """Handle the two signals during the block."""
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
    """Make steps up to `last_step`, and call every action that is due after them, in order.

    Args:
        make_steps: makes at most as many steps as it is told, in one call; no action is due before the last of them.
        first_step: the number of steps that the state has made.
        last_step: the number of steps at the end of the run.
        on_metrics: called with the metrics of each call of `make_steps`.
        actions: called after each step where they are due.
        save: called with the step before the loop stops on request.
        should_stop: asked after each call of `make_steps`.
        is_over: asked likewise; ends the loop before `last_step`.

    Returns:
        The number of steps that the state has made.

    Raises:
        StoppedOnRequest: `should_stop` returned True; the state has been saved.
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
