"""The learning rate of each step: scaled with the batch, warmed up, then by its schedule to the end of the run."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf

from trainer.config.config import Config
from trainer.config.training import OptimizerConfig, TrainConfig
from trainer.data.sampling.epochs import Epochs
from trainer.errors import ConfigError

Tensor = Any
_PI = 3.141592653589793
# Of schedule one_cycle.
_RISING_SHARE, _FIRST_SHARE, _LAST_SHARE = 0.3, 1 / 25, 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning rate that rises linearly over `warmup_steps` to `peak` and then follows `kind` to the last step."""

    kind: Literal["constant", "cosine", "linear", "step", "one_cycle"]
    peak: float
    warmup_steps: int
    num_train_steps: int
    falls_at: Sequence[int] = ()
    step_factor: float = 0.1

    @classmethod
    def of(cls, config: Config, *, num_train_steps: int, epochs: Epochs | None = None) -> "Schedule":
        """Make the schedule of a run; what it has in epochs is counted in `epochs`, and needs them.

        The peak is scaled with the batch where the configuration asks for it: linearly (Goyal et al. 2017,
        arXiv:1706.02677), or with the square root (Krizhevsky 2014, arXiv:1404.5997, and Hoffer et al. 2017).

        Raises:
            ConfigError: the warm-up is given in steps and in epochs, or is longer than the run; or the schedule does
                not go with it, or with the epochs of its steps.
        """
        optimizer, train = config.optimizer, config.train
        _check(optimizer, train)
        warmup_steps, falls_at = optimizer.warmup_steps, []
        if optimizer.warmup_epochs or optimizer.step_epochs:
            assert epochs is not None, "a schedule in epochs needs to know where they end"
            warmup_steps = warmup_steps or epochs.last_step_of(optimizer.warmup_epochs)
            falls_at = [epochs.last_step_of(epoch) for epoch in optimizer.step_epochs]
        ratio = train.global_batch_size / optimizer.scaling_batch_size
        factor = {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[optimizer.scaling]
        return cls(
            kind=optimizer.schedule,
            peak=optimizer.learning_rate * factor,
            warmup_steps=warmup_steps,
            num_train_steps=num_train_steps,
            falls_at=falls_at,
            step_factor=optimizer.step_factor,
        )

    def at(self, step: Tensor) -> Tensor:
        """Return the learning rate, a float32 scalar, of update `step` (from 0)."""
        step = tf.cast(step, tf.float32)
        warmup = float(self.warmup_steps)
        peak = tf.constant(self.peak, tf.float32)
        progress = tf.clip_by_value((step - warmup) / max(1.0, self.num_train_steps - warmup), 0.0, 1.0)
        rate = peak
        if self.kind == "cosine":
            rate = peak * _half_cosine(progress)
        elif self.kind == "linear":
            rate = peak * (1.0 - progress)
        elif self.kind == "step":
            num_falls = tf.reduce_sum([tf.cast(step >= float(fall), tf.float32) for fall in self.falls_at])
            rate = peak * tf.pow(self.step_factor, num_falls)
        elif self.kind == "one_cycle":
            down = (progress - _RISING_SHARE) / (1.0 - _RISING_SHARE)
            rising = _FIRST_SHARE + (1.0 - _FIRST_SHARE) * (1.0 - _half_cosine(progress / _RISING_SHARE))
            falling = _LAST_SHARE + (1.0 - _LAST_SHARE) * _half_cosine(down)
            rate = peak * tf.where(progress < _RISING_SHARE, rising, falling)
        return tf.where(step < warmup, peak * (step + 1.0) / (warmup + 1.0), rate)


def _half_cosine(progress: Tensor) -> Tensor:
    """Fall from 1 at 0 to 0 at 1."""
    return 0.5 * (1.0 + tf.cos(tf.constant(_PI) * progress))


def _check(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    if optimizer.warmup_steps and optimizer.warmup_epochs:
        raise ConfigError(
            f"optimizer.warmup_steps is {optimizer.warmup_steps} and optimizer.warmup_epochs "
            f"{optimizer.warmup_epochs}; set one of them to 0"
        )
    if optimizer.warmup_epochs > train.epochs:
        raise ConfigError(
            f"optimizer.warmup_epochs is {optimizer.warmup_epochs}, longer than the run of train.epochs "
            f"{train.epochs}; make it a part of the run"
        )
    if optimizer.schedule == "one_cycle" and (optimizer.warmup_steps or optimizer.warmup_epochs):
        raise ConfigError(
            "optimizer.schedule is one_cycle, which begins with a warm-up of its own; set optimizer.warmup_steps and "
            "optimizer.warmup_epochs to 0"
        )
    if (optimizer.schedule == "step") != bool(optimizer.step_epochs):
        raise ConfigError(
            f"optimizer.schedule is {optimizer.schedule} and optimizer.step_epochs {optimizer.step_epochs}; schedule "
            "step needs the epochs at which the learning rate falls, as in [10, 20], and the others have none"
        )
    if any(epoch >= train.epochs for epoch in optimizer.step_epochs):
        raise ConfigError(
            f"optimizer.step_epochs is {optimizer.step_epochs}, and the run ends with epoch {train.epochs:g}; leave "
            "out what comes after"
        )
