"""How many steps the outer loop makes at once, and when it ends."""

import time

import pytest
import tensorflow as tf

from trainer.errors import OutOfMemoryError, StoppedOnRequest
from trainer.step.step_results import StepMetrics
from trainer.training.loop import run_loop
from trainer.training.memory import MemoryPolicy


class PretendedSteps:
    """Steps that only count, and of which the newest is not settled before it is asked for."""

    def __init__(self, *, secs: float = 0.0, stop_after: int | None = None) -> None:
        self.asked: list[int] = []
        self._secs, self._stop_after = secs, stop_after
        self._open: list[StepMetrics] = []

    def make(self, num_steps: int) -> int:
        self.asked.append(num_steps)
        time.sleep(self._secs)
        self._open.append(StepMetrics(*(tf.zeros([num_steps]) for _ in StepMetrics._fields)))
        return num_steps

    def settle(self) -> list[StepMetrics]:
        settled, self._open = self._open, []
        return settled

    def is_stop_due(self, step: int) -> bool:
        return self._stop_after is not None and step >= self._stop_after

    def agree_to_stop(self) -> bool:
        return True


def test_a_stop_request_ends_the_loop_after_the_running_step_and_saves_it() -> None:
    saved: list[int] = []
    collected: list[StepMetrics] = []
    with pytest.raises(StoppedOnRequest) as error:
        run_loop(
            steps=PretendedSteps(secs=0.6, stop_after=5),
            first_step=3,
            last_step=10,
            on_metrics=collected.append,
            actions=[],
            save=saved.append,
        )
    assert saved == [5] and len(collected) == 2
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
    action, steps, settled = EveryFour(), PretendedSteps(), []
    last = run_loop(
        steps=steps,
        first_step=1,
        last_step=14,
        on_metrics=settled.append,
        actions=[action],
        save=lambda _: None,
    )
    assert (last, action.calls, steps.asked) == (14, [4, 8, 12], [1, 1, 1, 4, 4, 2])
    assert sum(metrics.num_steps for metrics in settled) == 13, "every step is accounted for"


def test_slow_steps_are_made_one_by_one_so_that_a_stop_need_not_wait() -> None:
    steps = PretendedSteps(secs=0.6)
    run_loop(
        steps=steps,
        first_step=0,
        last_step=4,
        on_metrics=lambda _: None,
        actions=[],
        save=lambda _: None,
    )
    assert steps.asked == [1, 1, 1, 1]


def test_parts_are_doubled_up_to_what_a_batch_holds_and_then_it_is_an_error() -> None:
    told: list[str] = []
    memory = MemoryPolicy(num_parts=1, max_parts=3, refusal=None, note=told.append)
    memory.double(5, "on this worker")
    memory.double(5, "on this worker")
    assert memory.num_parts == 3
    assert told[0] == "memory did not suffice for step 5 on this worker with the batch in 1 parts; making it again in 2"
    with pytest.raises(OutOfMemoryError, match="in 3 parts, the most there are; use a smaller"):
        memory.double(5, "on this worker")
    with pytest.raises(OutOfMemoryError, match="in 1 parts; because"):
        MemoryPolicy(num_parts=1, max_parts=8, refusal="because").double(1, "on this worker")
