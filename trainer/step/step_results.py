"""Define the results of a training step: metrics for people, and flags that all workers act on."""

from typing import Any, NamedTuple

Tensor = Any


class StepMetrics(NamedTuple):
    """Scalars of one global step, the same on every replica; or vectors [num_steps] of several steps."""

    loss: Tensor
    accuracy: Tensor
    is_skipped: Tensor
    loss_scale: Tensor
    gradient_norm: Tensor
    learning_rate: Tensor

    @property
    def num_steps(self) -> int:
        return 1 if self.loss.shape.rank == 0 else int(self.loss.shape[0])


class StepFlags(NamedTuple):
    """Scalars of one global step: the number of replicas whose worker wants to stop, or had too little memory."""

    wants_stop: Tensor
    is_out_of_memory: Tensor
