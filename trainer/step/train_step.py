"""Make a training step on all replicas.

    forward_backward   one replica, no collectives inside, compiled by XLA where asked for
    all_reduce_sum     the engine: gradients, batch-norm statistics and sums in packs
    apply              the same update, or the same decision to skip it, on every replica; compiled likewise

Everything is a function of tensors: the model is called with the values of its variables and returns its new batch-norm
statistics, so that a step with a non-finite gradient is undone by not assigning it. All variables are assigned after
all reductions have come back: a worker that loses its peers in the middle still has the state after a whole step.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.config.config import Config
from trainer.data.input.batch import Batch
from trainer.data.sampling.epochs import Epochs
from trainer.distribute.engine import Engine
from trainer.model.classifier import find_backbone_in
from trainer.model.freezing import learning_rate_factors
from trainer.model.layers.batch_norm import SynchronizedBatchNormalization, changing_statistics, debias_moving_average
from trainer.step.averages import update_averages
from trainer.step.forward_backward import ForwardBackward, ReplicaGradients
from trainer.step.losses import Objective
from trainer.step.optimizer import Optimizer, clipping_factor
from trainer.step.schedule import Schedule
from trainer.step.state import TrainState
from trainer.system.private_api.keras_graph import all_layers

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


_METRIC_DTYPES = StepMetrics(
    loss=tf.float32,
    accuracy=tf.float32,
    is_skipped=tf.int64,
    loss_scale=tf.float32,
    gradient_norm=tf.float32,
    learning_rate=tf.float32,
)


class _Updated(NamedTuple):
    """The values that a step assigns, in the order of its variables."""

    trainable: list[Tensor]
    slots: list[list[Tensor]]
    statistics: list[Tensor]
    averages: list[Tensor]
    scalars: list[Tensor]


class TrainStep:
    """The training step of all replicas.

    Call it on a per-replica `Batch`; it updates the state and returns `StepMetrics`. `run_steps` makes many steps in
    one compiled loop, between which no Python runs.
    """

    def __init__(
        self,
        engine: Engine,
        state: TrainState,
        config: Config,
        *,
        num_train_steps: int,
        jit_compile: bool,
        epochs: Epochs | None = None,
        objective: Objective | None = None,
        unfrozen_at: Mapping[int, int] | None = None,
        new_statistics: Mapping[int, float] | None = None,
    ) -> None:
        """Train the variables that are trainable in the model now, some or all of those of the state.

        `epochs` are those of the run, for a schedule that counts in them; `objective` is None for one label an image.
        `unfrozen_at` gives, by the id of a variable, the step from which on it is trained, 0 where left out.
        `new_statistics` gives the momentum, by their ids, of batch statistics that training starts from nothing (see
        `debias_moving_average`); the others go on from their values.

        Raises:
            ValueError: synchronised batch statistics under XLA, which has no collectives.
        """
        self._engine, self._state, self._config = engine, state, config
        self._schedule = Schedule.of(config, num_train_steps=num_train_steps, epochs=epochs)
        self._trained, self._statistics = list(state.model.trainable_variables), changing_statistics(state.model)
        self._new_statistics = new_statistics or {}
        self._optimizer = _make_optimizer(config, state.model, self._trained, unfrozen_at)
        objective = objective or Objective.of(config, task="single_label", num_classes=state.model.output_shape[-1])
        is_synchronized = any(isinstance(x, SynchronizedBatchNormalization) for x in all_layers(state.model))
        if is_synchronized and jit_compile:
            raise ValueError("synchronised batch statistics are reduced inside the forward pass, which XLA cannot do")
        forward_backward = ForwardBackward(
            state.model,
            config,
            objective,
            statistics=self._statistics,
            synchronize=engine.all_reduce_sum if is_synchronized else None,
        )
        # AutoGraph would only take time: nothing here is Python control flow over tensors.
        # A strategy's collectives must not be called from a function within the replica's.
        self._forward_backward = (
            forward_backward
            if is_synchronized
            else tf.function(forward_backward.__call__, jit_compile=jit_compile, autograph=False)
        )
        self._apply = tf.function(self._apply_to_tensors, jit_compile=jit_compile, autograph=False)
        self._step = tf.function(self._on_all_replicas, autograph=False)
        self._loop = tf.function(self._loop_on_all_replicas, autograph=False)

    def __call__(self, batch: Batch) -> StepMetrics:
        return StepMetrics(*self._step(batch))

    def run_steps(self, batches: Any, num_steps: int) -> StepMetrics:
        """Make `num_steps` steps on the next of `batches`, the iterator of a dataset that the engine distributes."""
        return StepMetrics(*self._loop(batches, tf.constant(num_steps)))

    def _on_all_replicas(self, batch: Batch) -> StepMetrics:
        metrics = self._engine.run(self._on_replica, batch)
        return StepMetrics(*(self._engine.local_values(value)[0] for value in metrics))

    def _loop_on_all_replicas(self, batches: Any, num_steps: Tensor) -> list[Tensor]:
        def make_step(i: Tensor, columns: list[Any]) -> tuple[Tensor, list[Any]]:
            metrics = self._on_all_replicas(next(batches))
            return i + 1, [column.write(i, value) for column, value in zip(columns, metrics, strict=True)]

        columns = [tf.TensorArray(dtype, size=num_steps, element_shape=[]) for dtype in _METRIC_DTYPES]
        start = (tf.constant(0), columns)
        _, columns = tf.while_loop(lambda i, _: i < num_steps, make_step, start, parallel_iterations=1)
        return [column.stack() for column in columns]

    def _on_replica(self, batch: Batch) -> StepMetrics:
        variables = self._variables()
        before = tf.nest.map_structure(tf.convert_to_tensor, variables)
        local = self.reduce_gradients(self.compute_gradients(batch))
        after, metrics = self._apply(before, local)
        # The call above is inlined, and what of it needs no reduced tensor, such as the number of the step, does not
        # wait for any: the assignments themselves have to.
        with tf.control_dependencies(tf.nest.flatten(local)):
            _assign(variables.scalars, after.scalars)
            # A branch, and no choice of old or new for each tensor: that would copy the whole state once more.
            old, new = variables._replace(scalars=[]), after._replace(scalars=[])
            tf.cond(metrics.is_skipped > 0, lambda: None, lambda: _assign(old, new))
        return StepMetrics(*metrics)

    def compute_gradients(self, batch: Batch) -> ReplicaGradients:
        """Return what this replica adds to the sums; to be called on each replica, inside a tf.function."""
        model = self._state.model
        trainable = [tf.convert_to_tensor(v.value) for v in model.trainable_variables]
        fixed = [tf.convert_to_tensor(v.value) for v in model.non_trainable_variables]
        scale = tf.convert_to_tensor(self._state.loss_scale.scale)
        local: ReplicaGradients = self._forward_backward(trainable, fixed, batch, scale)
        return local

    def reduce_gradients(self, local: ReplicaGradients) -> ReplicaGradients:
        """Return the sums over all replicas, and the average of the statistics; to be called like the other."""
        gradients = local.gradients
        if self._config.distribute.compression == "float16":
            gradients = [tf.cast(gradient, tf.float16) for gradient in gradients]
        reduced = self._engine.all_reduce_sum([*gradients, *local.statistics, local.sums])
        num_gradients = len(gradients)
        num_replicas = self._engine.topology.num_replicas
        return ReplicaGradients(
            [tf.cast(gradient, tf.float32) for gradient in reduced[:num_gradients]],
            [statistic / num_replicas for statistic in reduced[num_gradients:-1]],
            reduced[-1],
        )

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
        momenta, num_parts = self._new_statistics, self._config.train.accumulate_steps
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


def _assign(variables: Any, values: Any) -> None:
    for variable, value in zip(tf.nest.flatten(variables), tf.nest.flatten(values), strict=True):
        variable.assign(value)


def _make_optimizer(config: Config, model: Any, trained: list[Any], unfrozen_at: Mapping[int, int] | None) -> Optimizer:
    # Where features are kept, what is trained may be the head alone.
    network = find_backbone_in(model)
    decay = config.optimizer.layer_decay
    factors = learning_rate_factors(model, network, decay) if decay < 1 and network is not None else None
    return Optimizer.of_variables(config.optimizer, trained, factors=factors, starts=unfrozen_at)
