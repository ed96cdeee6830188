"""The learning rate of each step: scaled with the batch, warmed up, then by its schedule to the end of the run."""

import dataclasses
from typing import Any, Literal

import tensorflow as tf

from trainer.config import Config
from trainer.errors import ConfigError

Tensor = Any
_PI = 3.141592653589793


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up over `warmup_steps` to `peak`, then constant or along half a cosine to 0 at `num_train_steps`."""

    kind: Literal["constant", "cosine"]
    peak: float
    warmup_steps: int
    num_train_steps: int

    @classmethod
    def of(cls, config: Config, *, num_train_steps: int) -> "Schedule":
        """The schedule of a run.

        The peak is scaled with the batch where the configuration asks for it: linearly (Goyal et al. 2017,
        arXiv:1706.02677), or with the square root (Krizhevsky 2014, arXiv:1404.5997, and Hoffer et al. 2017).

        Raises:
            ConfigError: the warm-up is given in steps and in epochs, or is longer than the run.
        """
        optimizer, train = config.optimizer, config.train
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
        warmup_steps = optimizer.warmup_steps or round(num_train_steps * optimizer.warmup_epochs / train.epochs)
        ratio = train.global_batch_size / optimizer.scaling_batch_size
        factor = {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[optimizer.scaling]
        return cls(
            kind=optimizer.schedule,
            peak=optimizer.learning_rate * factor,
            warmup_steps=warmup_steps,
            num_train_steps=num_train_steps,
        )

    def at(self, step: Tensor) -> Tensor:
        """The learning rate, a float32 scalar, of update `step` (from 0)."""
        step = tf.cast(step, tf.float32)
        warmup = float(self.warmup_steps)
        peak = tf.constant(self.peak, tf.float32)
        rate = peak
        if self.kind == "cosine":
            progress = tf.clip_by_value((step - warmup) / max(1.0, self.num_train_steps - warmup), 0.0, 1.0)
            rate = 0.5 * peak * (1.0 + tf.cos(tf.constant(_PI) * progress))
        return tf.where(step < warmup, peak * (step + 1.0) / (warmup + 1.0), rate)
