"""The outer loop: it makes steps, and calls the actions that are due after them."""

import time
from collections.abc import Callable
from typing import Protocol

from trainer.errors import StoppedOnRequest
from trainer.step.evaluation_step import steps_at_once
from trainer.step.step_results import StepMetrics
from trainer.training.steps import Steps


class Action(Protocol):
    """An action after a step, such as logging, evaluating or saving; the call does it."""

    def is_due(self, step: int) -> bool:
        """Return True if the action is to be called after `step`."""

    def __call__(self, step: int) -> None: ...


def run_loop(
    *,
    steps: Steps,
    first_step: int,
    last_step: int,
    on_metrics: Callable[[StepMetrics], None],
    actions: list[Action],
    save: Callable[[int], None],
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Make steps up to `last_step`, and call every action that is due after them, in order.

    Args:
        steps: makes the steps; no action is due before the last of those that it is asked for in one call.
        first_step: the number of steps that the state has made.
        last_step: the number of steps at the end of the run.
        on_metrics: called with the metrics of one or more steps, before the next action.
        actions: called after each step where they are due.
        save: called with the step before the loop stops on request.
        is_over: asked after each call of `steps.make`; ends the loop before `last_step`.

    Returns:
        The number of steps that the state has made.

    Raises:
        StoppedOnRequest: a stop was asked for; the state has been saved.
    """
    step, num_at_once = first_step, 1

    def settle() -> None:
        for metrics in steps.settle():
            on_metrics(metrics)

    while step < last_step:
        started_secs = time.monotonic()
        num_made = steps.make(min(num_at_once, _steps_until_due(step, last_step, actions)))
        # The first call is traced and compiled: the next one is timed with one step as well.
        if step > first_step and num_made:
            num_at_once = steps_at_once(time.monotonic() - started_secs, num_made)
        step += num_made
        if due := [action for action in actions if num_made and action.is_due(step)]:
            settle()
        for action in due:
            action(step)
        if is_over():
            break
        if steps.is_stop_due(step):
            # An elastic worker that leaves its generation here takes the metrics of all its steps with it.
            settle()
            if steps.agree_to_stop():
                save(step)
                raise StoppedOnRequest(f"stopped after step {step}, and saved; the same command goes on from there")
    settle()
    return step


def _steps_until_due(step: int, last_step: int, actions: list[Action]) -> int:
    for later in range(step + 1, last_step):
        if any(action.is_due(later) for action in actions):
            return later - step
    return last_step - step
