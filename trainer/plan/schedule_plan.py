"""The steps of a run: their number, learning rate, stages and checkpoints."""

import pydantic

from trainer.config.config import Config
from trainer.data.sampling.epochs import Epochs
from trainer.data.sampling.order import check_run_length
from trainer.model.backbones.backbone import Backbone
from trainer.plan.stages import Stage, plan_stages
from trainer.step.schedule import Schedule


class SchedulePlan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The steps of a run, the same on any number of replicas.

    `num_positions` are the examples that are read, each as often as it is. `checkpoint_every_steps` is None where
    checkpoints are saved at the ends of epochs alone.
    """

    steps_per_epoch: float
    num_train_steps: int
    num_positions: int
    peak_learning_rate: float
    warmup_steps: int
    stages: list[Stage]
    checkpoint_every_steps: int | None


def plan_schedule(config: Config, epochs: Epochs, backbone: Backbone, *, image_size_px: int) -> SchedulePlan:
    """Count the steps of `epochs`, and place the warm-up and the stages in them.

    Raises:
        ConfigError: Runs of consecutive examples, the warm-up or the stages do not go with the settings of the run.
    """
    check_run_length(config.data.run_length, sampling=config.data.sampling, num_examples=epochs.num_examples)
    schedule = Schedule.of(config, num_train_steps=epochs.num_train_steps, epochs=epochs)
    return SchedulePlan(
        steps_per_epoch=epochs.num_examples / epochs.batch_size,
        num_train_steps=epochs.num_train_steps,
        num_positions=epochs.num_positions,
        peak_learning_rate=schedule.peak,
        warmup_steps=schedule.warmup_steps,
        stages=plan_stages(
            config.augment.progressive_sizes_px,
            config.train,
            trainable=config.model.trainable,
            epochs=epochs,
            image_size_px=image_size_px,
            min_image_size_px=backbone.min_image_size_px,
            backbone=backbone.name,
        ),
        checkpoint_every_steps=config.checkpoint.every_steps,
    )
