"""Update the state with reduced gradients; every replica makes the same update, or the same decision to skip it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.config.config import Config
from trainer.model.classifier import find_backbone_in
from trainer.model.freezing import learning_rate_factors
from trainer.model.layers.batch_norm import debias_moving_average
from trainer.step.averages import update_averages
from trainer.step.forward_backward import ReplicaGradients
from trainer.step.optimizer import Optimizer, clipping_factor
from trainer.step.schedule import Schedule
from trainer.step.state import TrainState
from trainer.step.step_results import StepMetrics

Tensor = Any


class _Updated(NamedTuple):
    """The values that a step assigns, in the order of its variables."""

    trainable: list[Tensor]
    slots: list[list[Tensor]]
    statistics: list[Tensor]
    averages: list[Tensor]
    scalars: list[Tensor]


class StateUpdate:
    """The update of the variables that are trained, their averages, the batch statistics and the counters."""

    def __init__(
        self,
        state: TrainState,
        config: Config,
        schedule: Schedule,
        *,
        statistics: list[Any],
        new_statistics: Mapping[int, float],
        unfrozen_at: Mapping[int, int] | None,
        num_parts: int,
        jit_compile: bool,
    ) -> None:
        """Update what is trainable in the model now; see `TrainStep` for the arguments."""
        self._state, self._config, self._schedule = state, config, schedule
        self._trained, self._statistics = list(state.model.trainable_variables), statistics
        self._new_statistics, self._num_parts = new_statistics, num_parts
        self._optimizer = _make_optimizer(config, state.model, self._trained, unfrozen_at)
        # AutoGraph would only take time: nothing here is Python control flow over tensors.
        self._apply = tf.function(self._apply_to_tensors, jit_compile=jit_compile, autograph=False)

    def __call__(self, local: ReplicaGradients, is_withheld: Tensor) -> StepMetrics:
        """Assign the new state, in a branch, and no choice of old or new for each tensor: that would copy the state."""
        variables = self._variables()
        before = tf.nest.map_structure(tf.convert_to_tensor, variables)
        after, metrics = self._apply(before, local)

        def update() -> Tensor:
            # Where memory ends in between, the mark stays, and the state is known to be torn.
            with tf.control_dependencies([self._state.is_updating.assign(1)]):
                is_done = self._assign_all(variables, after, metrics.is_skipped > 0)
            with tf.control_dependencies([is_done]):
                self._state.is_updating.assign(0)
            return tf.constant(0)

        # The calls above are inlined, and what of them needs no gradient, such as the number of the step, does not wait
        # for any: the assignments themselves have to. A dependency on the output of a call, which the gradients of a
        # single replica are, waits for nothing once the call is inlined, and one on their copies does.
        with tf.control_dependencies([tf.identity(tensor) for tensor in tf.nest.flatten(local)]):
            tf.cond(is_withheld, lambda: 0, update)
        return StepMetrics(*metrics)

    def _assign_all(self, variables: _Updated, after: _Updated, is_skipped: Tensor) -> Tensor:
        """Assign the counters, and the rest unless the step is skipped; return a tensor that is there afterwards."""
        scalars = _assign(variables.scalars, after.scalars)
        old, new = variables._replace(scalars=[]), after._replace(scalars=[])
        rest = tf.cond(is_skipped, lambda: 0, lambda: _assign(old, new))
        with tf.control_dependencies([scalars, rest]):
            return tf.constant(0)

    def _apply_to_tensors(self, before: _Updated, local: ReplicaGradients) -> tuple[_Updated, StepMetrics]:
        config, state = self._config, self._state
        scale, num_good_steps, step, num_skipped = before.scalars
        weight = tf.maximum(local.sums[2], 1.0)
        correction = config.train.global_batch_size / (weight * scale)
        norm = tf.linalg.global_norm(local.gradients) * correction
        # The reduced gradients are the same on every replica, and an inf or nan of any one of them is in the norm.
        is_finite = tf.math.is_finite(norm)
        rate = self._schedule.at(step)
        num_updates = step - num_skipped
        trainable, slots = self._optimizer.update(
            before.trainable,
            local.gradients,
            before.slots,
            gradient_factor=correction * clipping_factor(norm, config.optimizer.clip_norm),
            learning_rate=rate,
            num_updates=num_updates,
        )
        statistics = self._debias(before.statistics, local.statistics, num_updates)
        averages: list[Tensor] = []
        if config.train.ema_decay is not None:
            values = [*trainable, *statistics]
            averages = update_averages(before.averages, values, decay=config.train.ema_decay, num_updates=num_updates)
        new_scale, num_good_steps = state.loss_scale.next(scale, num_good_steps, is_finite)
        is_skipped = tf.cast(tf.logical_not(is_finite), tf.int64)
        scalars = [new_scale, num_good_steps, step + 1, num_skipped + is_skipped]
        metrics = StepMetrics(local.sums[0] / weight, local.sums[1] / weight, is_skipped, new_scale, norm, rate)
        return _Updated(trainable, slots, statistics, averages, scalars), metrics

    def _debias(self, old: list[Tensor], new: list[Tensor], num_updates: Tensor) -> list[Tensor]:
        momenta, num_parts = self._new_statistics, self._num_parts
        return [
            debias_moving_average(before, after, momentum=momenta[id(v)], num_parts=num_parts, num_updates=num_updates)
            if id(v) in momenta
            else after
            for v, before, after in zip(self._statistics, old, new, strict=True)
        ]

    def _variables(self) -> _Updated:
        """Return the variables, as TensorFlow's, that a step reads and assigns."""
        state = self._state
        averages = state.averaged_values()
        return _Updated(
            trainable=[v.value for v in self._trained],
            slots=state.slots_of(self._trained),
            statistics=[v.value for v in self._statistics],
            # That of a variable which does not change yet is the variable.
            averages=[averages[id(v)] for v in [*self._trained, *self._statistics]] if averages else [],
            scalars=[*state.loss_scale.variables, state.global_step, state.num_skipped_steps],
        )


def _assign(variables: Any, values: Any) -> Tensor:
    """Assign all of them, and return a tensor that is there when it is done."""
    pairs = zip(tf.nest.flatten(variables), tf.nest.flatten(values), strict=True)
    with tf.control_dependencies([variable.assign(value) for variable, value in pairs]):
        return tf.constant(0)


def _make_optimizer(config: Config, model: Any, trained: list[Any], unfrozen_at: Mapping[int, int] | None) -> Optimizer:
    # Where features are kept, what is trained may be the head alone.
    network = find_backbone_in(model)
    decay = config.optimizer.layer_decay
    factors = learning_rate_factors(model, network, decay) if decay < 1 and network is not None else None
    return Optimizer.of_variables(config.optimizer, trained, factors=factors, starts=unfrozen_at)
