"""The numbers of batches and steps, and the learning rates of a run."""

from trainer.config.config import Config
from trainer.data.sampling.epochs import Epochs
from trainer.distribute.topology import part_size
from trainer.dry_run.section import Section
from trainer.plan.plan import Plan
from trainer.step.schedule import Schedule


class BatchArithmetic(Section):
    """The training examples in batches and steps.

    Attributes:
        num_filled_up: Examples of weight zero in every step, over all replicas.
        chunk_size: Examples that a replica computes at a time, `accumulate_steps` times a step.
        last_batch_size: Real examples in the last step.
    """

    epochs: float
    num_examples: int
    num_positions: int
    global_batch_size: int
    per_replica_batch_size: int
    num_filled_up: int
    accumulate_steps: int
    chunk_size: int
    steps_per_epoch: float
    num_train_steps: int
    last_batch_size: int


class LearningRateAt(Section):
    step: int
    learning_rate: float


class LearningRate(Section):
    """The learning rate: its setting, scaling and schedule, and the rate of some steps, counted from 0."""

    setting: float
    scaling: str
    scaling_batch_size: int
    factor: float
    peak: float
    schedule: str
    warmup_steps: int
    at: list[LearningRateAt]


def count_batches(plan: Plan, config: Config) -> BatchArithmetic:
    size, num_steps = plan.replicas.global_batch_size, plan.schedule.num_train_steps
    num_chunks = config.train.num_parts
    chunk_size = part_size(plan.replicas.per_replica_batch_size, num_chunks)
    return BatchArithmetic(
        epochs=config.train.epochs,
        num_examples=plan.data.num_train_examples,
        num_positions=plan.schedule.num_positions,
        global_batch_size=size,
        per_replica_batch_size=plan.replicas.per_replica_batch_size,
        num_filled_up=chunk_size * num_chunks * plan.replicas.num_replicas - size,
        accumulate_steps=num_chunks,
        chunk_size=chunk_size,
        steps_per_epoch=plan.schedule.steps_per_epoch,
        num_train_steps=num_steps,
        last_batch_size=plan.schedule.num_positions - (num_steps - 1) * size,
    )


def find_learning_rates(epochs: Epochs, config: Config) -> LearningRate:
    """Return the schedule of the run, and its rates at the start, at the end of the warm-up, and along the way."""
    schedule = Schedule.of(config, num_train_steps=epochs.num_train_steps, epochs=epochs)
    last = epochs.num_train_steps - 1
    steps = {0, schedule.warmup_steps, *(last * quarter // 4 for quarter in range(1, 5))}
    return LearningRate(
        setting=config.optimizer.learning_rate,
        scaling=config.optimizer.scaling,
        scaling_batch_size=config.optimizer.scaling_batch_size,
        factor=schedule.peak / config.optimizer.learning_rate,
        peak=schedule.peak,
        schedule=schedule.kind,
        warmup_steps=schedule.warmup_steps,
        at=[
            LearningRateAt(step=step, learning_rate=float(schedule.at(step))) for step in sorted(steps) if step <= last
        ],
    )
