"""Where the epochs of a run end, in integers.

The stream of examples does not stop at epochs: step s (from 1) takes the positions up to s * batch_size, and epoch e
ends with the step that takes position e * num_examples, the last of its examples. A quotient in floating point misses
some of these steps, and a rounded number of steps drifts away from them.
"""

import dataclasses
import fractions
from typing import TYPE_CHECKING

from trainer.errors import ConfigError

if TYPE_CHECKING:  # nothing here needs more than a few numbers of it
    from trainer.config.config import Config

# Positions are 64-bit integers on the devices as well.
_MAX_POSITIONS = 2**62


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epochs:
    """The epochs of a run of `num_train_steps` steps, of which `num_positions` positions count.

    num_examples: positions of an epoch. batch_size: positions that a step takes, all replicas together.
    """

    num_examples: int
    batch_size: int
    num_train_steps: int
    num_positions: int

    @classmethod
    def of(cls, config: "Config", num_examples: int) -> "Epochs":
        """The epochs of a run on `num_examples` training images.

        Raises:
            ConfigError: `train.epochs` is less than one image or, without the last batch, than one batch; or more than
                can be counted.
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
        """Whether an epoch ends with `step`, from 1."""
        return step * self.batch_size // self.num_examples > (step - 1) * self.batch_size // self.num_examples

    @property
    def num_ends(self) -> int:
        """Steps of the run that `ends_with` is true of, or that are its last."""
        # Where a batch is no smaller than an epoch, every step ends one or more.
        ends = min(self.num_train_steps * self.batch_size // self.num_examples, self.num_train_steps)
        return ends + (not self.ends_with(self.num_train_steps))

    def last_step_of(self, epochs: float) -> int:
        """The step (from 1) that takes the last example of the first `epochs` epochs, or the last of the run."""
        return min(-(-_positions_of(epochs, self.num_examples) // self.batch_size), self.num_train_steps)

    def done_after(self, step: int) -> float:
        """How many epochs are done after `step` steps; what fills up the last batch does not count."""
        is_last = step >= self.num_train_steps
        return (self.num_positions if is_last else step * self.batch_size) / self.num_examples


def _positions_of(epochs: float, num_examples: int) -> int:
    """Whole examples in so many epochs, the number taken as it is written: 0.29 of 100 are 29, not 28."""
    exact = fractions.Fraction(repr(float(epochs)))
    return exact.numerator * num_examples // exact.denominator
