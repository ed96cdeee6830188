"""Update rules as pure functions of tensors: SGD with momentum, Adam, AdamW and LARS.

Keras's optimizers hold variables and add up gradients over replicas again when they apply them; under its TensorFlow
backend they have no stateless form. The training step needs one: every replica computes the same update from the same
reduced gradient, compiled by XLA, and an update that must not happen is simply not assigned. The rules are checked
against Keras's in the tests.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from trainer.config.training import OptimizerConfig

Tensor = Any
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7
_DEFAULT_ADAMW_DECAY = 1e-4


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An update rule with its settings for each parameter.

    Attributes:
        config: the settings `optimizer`.
        decays: whether weight decay applies to the parameter.
        factors: of its learning rate.
        starts: the step from which on it is trained; its updates are counted from there.
    """

    config: OptimizerConfig
    decays: list[bool]
    factors: list[float]
    starts: list[int]

    @classmethod
    def of_variables(
        cls,
        config: OptimizerConfig,
        variables: list[Any],
        *,
        factors: Mapping[int, float] | None = None,
        starts: Mapping[int, int] | None = None,
    ) -> "Optimizer":
        """Decay kernels only: biases and the scale of normalisations have rank 1.

        `factors` and `starts` are by the id of a variable; what they leave out is 1, and 0.
        """
        return cls(
            config,
            [len(v.shape) > 1 for v in variables],
            [(factors or {}).get(id(v), 1.0) for v in variables],
            [(starts or {}).get(id(v), 0) for v in variables],
        )

    @property
    def num_slots(self) -> int:
        """The number of float32 slots of each parameter, which are shaped like it and start at zero."""
        return 1 if self.config.name in ("sgd", "lars") else 2

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
        gradient_factor: Tensor = 1.0,
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return new parameters and slots after one update; `num_updates` (int64, from 0) counts those before it.

        The scalar `gradient_factor` multiplies the gradients; given here, it joins the other scalars of the rule and
        saves a pass over all of them.
        """
        new_parameters, new_slots = [], []
        for i, (parameter, gradient, slot) in enumerate(zip(parameters, gradients, slots, strict=True)):
            num_own_updates = tf.maximum(num_updates - self.starts[i], 0) if self.starts[i] else num_updates
            rate = learning_rate * self.factors[i]
            step, slot = self._step(i, parameter, gradient, gradient_factor, slot, rate, num_own_updates)
            new_parameters.append(parameter - step)
            new_slots.append(slot)
        return new_parameters, new_slots

    def _step(
        self,
        i: int,
        parameter: Tensor,
        gradient: Tensor,
        factor: Tensor,
        slot: list[Tensor],
        learning_rate: Tensor,
        num_updates: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what is subtracted from parameter `i`, and its new slots."""
        decay = self.weight_decay if self.decays[i] else 0.0
        name = self.config.name
        if name == "adamw":
            step, slot = _adam(gradient, factor, slot, learning_rate, num_updates)
            return (step + learning_rate * decay * parameter if decay else step), slot
        if decay or (name == "lars" and self.decays[i]):
            gradient, factor = factor * gradient + decay * parameter, 1.0
        if name == "adam":
            return _adam(gradient, factor, slot, learning_rate, num_updates)
        if name == "lars" and self.decays[i]:
            learning_rate *= _trust(parameter, gradient, self.config.trust_coefficient)
        return _sgd(gradient, factor, slot, learning_rate, self.config.momentum)


def clipping_factor(norm: Tensor, clip_norm: float | None) -> Tensor:
    """Return the factor of gradients with the global norm `norm` that makes it at most `clip_norm`."""
    return 1.0 if clip_norm is None else tf.minimum(1.0, clip_norm / tf.maximum(norm, 1e-12))


def _trust(parameter: Tensor, decayed_gradient: Tensor, coefficient: float) -> Tensor:
    """Return the trust ratio of LARS (You et al. 2017, arXiv:1708.03888): steps in proportion to a layer's weights.

    Biases and normalisations, which are not decayed either, are left out, as in the paper's code.
    """
    weight_norm, gradient_norm = tf.norm(parameter), tf.norm(decayed_gradient)
    is_defined = tf.logical_and(weight_norm > 0, gradient_norm > 0)
    return tf.where(is_defined, coefficient * weight_norm / tf.maximum(gradient_norm, 1e-12), 1.0)


def _sgd(
    gradient: Tensor, factor: Tensor, slot: list[Tensor], learning_rate: Tensor, momentum: float
) -> tuple[Tensor, list[Tensor]]:
    """Update with momentum; as in Keras, the learning rate is inside the velocity: schedules act on new gradients."""
    velocity = momentum * slot[0] + (learning_rate * factor) * gradient
    return velocity, [velocity]


def _adam(
    gradient: Tensor, factor: Tensor, slot: list[Tensor], learning_rate: Tensor, num_updates: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Update as in Kingma & Ba 2015 (arXiv:1412.6980), section 2, in the efficient form of its last paragraph."""
    t = tf.cast(num_updates, tf.float32) + 1.0
    mean = _BETA_1 * slot[0] + ((1.0 - _BETA_1) * factor) * gradient
    square = _BETA_2 * slot[1] + ((1.0 - _BETA_2) * factor * factor) * tf.square(gradient)
    correction = learning_rate * tf.sqrt(1.0 - tf.pow(_BETA_2, t)) / (1.0 - tf.pow(_BETA_1, t))
    return correction * mean / (tf.sqrt(square) + _EPSILON), [mean, square]
