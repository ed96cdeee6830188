"""The steps at which the epochs of a run end, in integers.

The stream of examples does not stop at epochs: step s (from 1) takes the positions up to s * batch_size, and epoch e
ends with the step that takes position e * num_examples - 1, the last of its examples. Division in floating point misses
some of these steps, and a rounded number of steps per epoch drifts away from them.
"""

import dataclasses
import fractions
from typing import TYPE_CHECKING

from trainer.errors import ConfigError

if TYPE_CHECKING:  # only for the annotation
    from trainer.config.config import Config

# Positions are 64-bit integers on the devices as well.
_MAX_POSITIONS = 2**62


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epochs:
    """The epochs of a run.

    Attributes:
        num_examples: Positions in an epoch.
        batch_size: Positions in a step, over all replicas.
        num_train_steps: Steps in the run.
        num_positions: Positions in the run; the rest of the last batch has weight zero.
    """

    num_examples: int
    batch_size: int
    num_train_steps: int
    num_positions: int

    @classmethod
    def of(cls, config: "Config", num_examples: int) -> "Epochs":
        """Count the epochs of a run on `num_examples` training images.

        Raises:
            ConfigError: `train.epochs` is less than one image or, if the last batch is dropped, less than one batch; or
                it is too large for 64-bit positions.
        """
        if config.train.solver == "ridge":
            # One step that takes everything.
            return cls(
                num_examples=num_examples, batch_size=num_examples, num_train_steps=1, num_positions=num_examples
            )
        epochs, batch_size = config.train.epochs, config.train.global_batch_size
        num_positions = _positions_of(epochs, num_examples)
        if not 1 <= num_positions <= _MAX_POSITIONS:
            how = "less than one" if num_positions < 1 else "too often to count each"
            raise ConfigError(
                f"train.epochs is {epochs:g}, {how} of the {num_examples} training images; use --set train.epochs=1"
            )
        num_train_steps = -(-num_positions // batch_size)
        if config.data.last_batch == "drop":
            num_train_steps = num_positions // batch_size
            num_positions = num_train_steps * batch_size
        if num_train_steps == 0:
            raise ConfigError(
                f"data.last_batch is drop, and train.epochs {epochs} of {num_examples} training images do not fill one "
                f"batch of {batch_size}; use --set data.last_batch=mask or a smaller train.global_batch_size"
            )
        return cls(
            num_examples=num_examples,
            batch_size=batch_size,
            num_train_steps=num_train_steps,
            num_positions=num_positions,
        )

    def ends_with(self, step: int) -> bool:
        """Return whether an epoch ends with `step`, counted from 1."""
        return step * self.batch_size // self.num_examples > (step - 1) * self.batch_size // self.num_examples

    @property
    def num_ends(self) -> int:
        """The number of steps that end an epoch or the run."""
        # Where a batch is no smaller than an epoch, every step ends one or more.
        ends = min(self.num_train_steps * self.batch_size // self.num_examples, self.num_train_steps)
        return ends + (not self.ends_with(self.num_train_steps))

    def last_step_of(self, epochs: float) -> int:
        """Return the step (from 1) with the last example of the first `epochs` epochs, or the last of the run."""
        return min(-(-_positions_of(epochs, self.num_examples) // self.batch_size), self.num_train_steps)

    def done_after(self, step: int) -> float:
        """Return the number of epochs done after `step` steps; examples of weight zero do not count."""
        is_last = step >= self.num_train_steps
        return (self.num_positions if is_last else step * self.batch_size) / self.num_examples


def _positions_of(epochs: float, num_examples: int) -> int:
    """Return the whole examples in `epochs` epochs, taken as the decimal number: 0.29 of 100 is 29, not 28."""
    exact = fractions.Fraction(repr(float(epochs)))
    return exact.numerator * num_examples // exact.denominator
