"""The parts of a training run that the loop and its actions share."""

import dataclasses

from trainer.config.config import Config
from trainer.distribute.engine import Engine
from trainer.plan.plan import Plan
from trainer.run.checkpoint_saver import CheckpointSaver
from trainer.run.run_dir import RunDir
from trainer.step.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """A training run as one worker sees it, on the replicas that `engine` connects.

    Attributes:
        plan: made for the replicas of `engine`.
        saver: None on every worker but the chief, which alone writes to the run directory.
    """

    plan: Plan
    config: Config
    run: RunDir
    engine: Engine
    state: TrainState
    saver: CheckpointSaver | None

    @property
    def is_chief(self) -> bool:
        return self.saver is not None

    @property
    def step(self) -> int:
        """The number of steps that `state` has made."""
        return int(self.state.global_step.numpy())
