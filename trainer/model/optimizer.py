"""Update rules as pure functions of tensors: SGD with momentum, Adam and AdamW.

Keras's optimizers hold variables and add up gradients over replicas again when they apply them; under its TensorFlow
backend they have no stateless form. The training step needs one: every replica computes the same update from the same
reduced gradient, compiled by XLA, and an update that must not happen is simply not assigned. The rules are checked
against Keras's in the tests.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from trainer.settings.training import OptimizerConfig

Tensor = Any
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7
_DEFAULT_ADAMW_DECAY = 1e-4


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An update rule. `decays` says, for each parameter, whether weight decay applies to it."""

    config: OptimizerConfig
    decays: list[bool]

    @classmethod
    def of_variables(cls, config: OptimizerConfig, variables: list[Any]) -> "Optimizer":
        """Decays kernels only: biases and the scale of normalisations have rank 1."""
        return cls(config, [len(v.shape) > 1 for v in variables])

    @property
    def num_slots(self) -> int:
        """How many float32 slots, shaped like the parameter and zero at the start, each parameter has."""
        return 1 if self.config.name == "sgd" else 2

    @property
    def weight_decay(self) -> float:
        if self.config.weight_decay is not None:
            return self.config.weight_decay
        return _DEFAULT_ADAMW_DECAY if self.config.name == "adamw" else 0.0

    def update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        slots: list[list[Tensor]],
        *,
        learning_rate: Tensor,
        num_updates: Tensor,
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """One update; `num_updates` (int64, from 0) counts those before it. Returns new parameters and slots."""
        rule = _sgd if self.config.name == "sgd" else _adam
        new_parameters, new_slots = [], []
        for parameter, gradient, slot, decays in zip(parameters, gradients, slots, self.decays, strict=True):
            decay = self.weight_decay if decays else 0.0
            if decay and self.config.name != "adamw":
                gradient += decay * parameter
            step, slot = rule(self.config, gradient, slot, learning_rate, num_updates)
            if decay and self.config.name == "adamw":
                step += learning_rate * decay * parameter
            new_parameters.append(parameter - step)
            new_slots.append(slot)
        return new_parameters, new_slots


def clip_by_global_norm(gradients: list[Tensor], clip_norm: float | None) -> tuple[list[Tensor], Tensor]:
    """Scales the gradients so that their global norm is at most `clip_norm`; returns them and the norm before."""
    norm = tf.linalg.global_norm(gradients)
    if clip_norm is None:
        return gradients, norm
    scale = tf.minimum(1.0, clip_norm / tf.maximum(norm, 1e-12))
    return [g * scale for g in gradients], norm


def _sgd(
    config: OptimizerConfig, gradient: Tensor, slot: list[Tensor], learning_rate: Tensor, _: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The learning rate is inside the velocity, as in Keras, so a schedule acts on new gradients only."""
    velocity = config.momentum * slot[0] + learning_rate * gradient
    return velocity, [velocity]


def _adam(
    _: OptimizerConfig, gradient: Tensor, slot: list[Tensor], learning_rate: Tensor, num_updates: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Kingma & Ba 2015 (arXiv:1412.6980), section 2, in the efficient form of its last paragraph."""
    t = tf.cast(num_updates, tf.float32) + 1.0
    mean = _BETA_1 * slot[0] + (1.0 - _BETA_1) * gradient
    square = _BETA_2 * slot[1] + (1.0 - _BETA_2) * tf.square(gradient)
    correction = learning_rate * tf.sqrt(1.0 - tf.pow(_BETA_2, t)) / (1.0 - tf.pow(_BETA_1, t))
    return correction * mean / (tf.sqrt(square) + _EPSILON), [mean, square]
