"""The steps that two plans of one run have in common, where only the number of epochs differs."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config.config import Config
from trainer.data.sampling.epochs import Epochs
from trainer.model.backbones.registry import find_backbone
from trainer.plan.plan import Plan
from trainer.plan.schedule_plan import SchedulePlan, plan_schedule
from trainer.plan.stages import Stage
from trainer.step.schedule import Schedule


class CommonSteps(NamedTuple):
    """How many first steps of two plans are the same, and in what the next one differs."""

    number: int
    # An empty text where the shorter plan is the beginning of the other.
    difference: str


def count_common_steps(before: Config, now: Config, plan: Plan) -> CommonSteps:
    """Compare `plan`, which is of `now`, with that of `before`, whose `train.epochs` is another one.

    The learning rate, the image size, the trained layers and the examples of each step are compared as resolved, not
    the settings that they come from.

    Raises:
        ConfigError: the settings `before` are invalid.
    """
    first, second = _schedule_of(before, plan), plan.schedule
    length = min(first.num_train_steps, second.num_train_steps)
    found = [CommonSteps(length, ""), *_differences(first, second, plan, now)]
    one, other = _learning_rates(before, first, plan, length), _learning_rates(now, second, plan, length)
    if (different := np.flatnonzero(one != other)).size:
        step = int(different[0])
        told = (
            f"with optimizer.schedule={now.optimizer.schedule}, the learning rate of step {step + 1} is "
            f"{one[step]:.6g} in a run of {first.num_train_steps} steps and {other[step]:.6g} in one of "
            f"{second.num_train_steps}"
        )
        found.append(CommonSteps(step, told))
    return min(found, key=lambda each: each.number)


def _differences(first: SchedulePlan, second: SchedulePlan, plan: Plan, config: Config) -> Iterator[CommonSteps]:
    """Yield the first step that differs in its examples, in what is trained at the end, and in its stage."""
    length = min(first.num_train_steps, second.num_train_steps)
    num_whole = min(first.num_positions, second.num_positions) // plan.epochs.batch_size
    if first.num_positions != second.num_positions and num_whole < length:
        yield CommonSteps(num_whole, f"the batch of step {num_whole + 1} is filled up where the shorter run ends")
    if config.train.patience is not None and not plan.epochs.ends_with(length):
        yield CommonSteps(length - 1, f"train.patience counts the evaluation at step {length}, where no epoch ends")
    if first.stages[-1].trainable != second.stages[-1].trainable:
        yield CommonSteps(0, f"the end trains {first.stages[-1].trainable}, and {second.stages[-1].trainable}")
    for start in sorted({stage.start_step for stage in [*first.stages, *second.stages] if stage.start_step < length}):
        one, other = _stage_at(first.stages, start), _stage_at(second.stages, start)
        if (one.image_size_px, one.trainable) != (other.image_size_px, other.trainable):
            yield CommonSteps(
                start,
                f"step {start + 1} trains {one.trainable} on images of {one.image_size_px} px in a run of "
                f"{first.num_train_steps} steps, and {other.trainable} on {other.image_size_px} px in one of "
                f"{second.num_train_steps}",
            )


def _schedule_of(config: Config, plan: Plan) -> SchedulePlan:
    epochs = Epochs.of(config, plan.data.num_train_examples)
    backbone = find_backbone(config.model.backbone, config.model.pixels)
    return plan_schedule(config, epochs, backbone, image_size_px=plan.model.image_size_px)


def _learning_rates(config: Config, schedule: SchedulePlan, plan: Plan, length: int) -> npt.NDArray[np.float32]:
    epochs = Epochs.of(config, plan.data.num_train_examples)
    rates = Schedule.of(config, num_train_steps=schedule.num_train_steps, epochs=epochs)
    return np.asarray(tf.vectorized_map(rates.at, tf.range(length)))


def _stage_at(stages: list[Stage], step: int) -> Stage:
    return next(stage for stage in stages if step < stage.stop_step)
