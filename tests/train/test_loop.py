"""How many steps the outer loop makes at once, and when it ends."""

import time

import pytest
import tensorflow as tf

from trainer.errors import StoppedOnRequest
from trainer.step.train_step import StepMetrics
from trainer.training.loop import run_loop

ONE_STEP = StepMetrics(*(tf.constant(0.0) for _ in StepMetrics._fields))


def test_a_stop_request_ends_the_loop_after_the_running_step_and_saves_it() -> None:
    saved: list[int] = []
    with pytest.raises(StoppedOnRequest) as error:
        run_loop(
            make_steps=lambda _: ONE_STEP,
            first_step=3,
            last_step=10,
            on_metrics=lambda _: None,
            actions=[],
            save=saved.append,
            should_stop=lambda: True,
        )
    assert saved == [4]
    assert error.value.exit_status == 75


class EveryFour:
    """Notes the steps after which it was called."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def is_due(self, step: int) -> bool:
        return step % 4 == 0

    def __call__(self, step: int) -> None:
        self.calls.append(step)


def test_quick_steps_are_made_many_at_once_and_never_past_one_after_which_something_is_due() -> None:
    action, asked = EveryFour(), []

    def make_steps(num_steps: int) -> StepMetrics:
        asked.append(num_steps)
        return StepMetrics(*(tf.zeros([num_steps]) for _ in StepMetrics._fields))

    last = run_loop(
        make_steps=make_steps,
        first_step=1,
        last_step=14,
        on_metrics=lambda _: None,
        actions=[action],
        save=lambda _: None,
        should_stop=lambda: False,
    )
    assert (last, action.calls, asked) == (14, [4, 8, 12], [1, 1, 1, 4, 4, 2])


def test_slow_steps_are_made_one_by_one_so_that_a_stop_need_not_wait() -> None:
    asked = []

    def make_steps(num_steps: int) -> StepMetrics:
        asked.append(num_steps)
        time.sleep(0.6)
        return ONE_STEP

    run_loop(
        make_steps=make_steps,
        first_step=0,
        last_step=4,
        on_metrics=lambda _: None,
        actions=[],
        save=lambda _: None,
        should_stop=lambda: False,
    )
    assert asked == [1, 1, 1, 1]
