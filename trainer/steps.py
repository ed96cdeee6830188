"""The training step and the evaluation step, for one replica and then for all.

    forward_backward   one replica, no collectives inside, compiled by XLA where asked for
    all_reduce_sum     the engine: gradients, batch-norm statistics and sums in one group
    apply              the same update, or the same decision to skip it, on every replica; compiled likewise

Everything is a function of tensors: the model is called with the values of its variables and returns its new batch-norm
statistics, so that a step with a non-finite gradient is undone by not assigning it.
"""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.data.augmentation.on_device import augment_batch
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.batch import Batch
from trainer.data.order import Purpose, stateless_seed
from trainer.distribute.engine import Engine
from trainer.model.classifier import is_seed
from trainer.model.loss_scale import LossScale
from trainer.model.optimizer import Optimizer, clip_by_global_norm, learning_rate_at

Tensor = Any


class StepMetrics(NamedTuple):
    """Scalars of one global step, the same on every replica."""

    loss: Tensor
    accuracy: Tensor
    is_skipped: Tensor
    loss_scale: Tensor
    gradient_norm: Tensor
    learning_rate: Tensor


class _Local(NamedTuple):
    """What one replica adds to the sums over all replicas."""

    gradients: list[Tensor]
    statistics: list[Tensor]
    sums: Tensor  # [3]: weighted loss, number right, weight


@dataclasses.dataclass
class TrainState:
    """Every variable that a step changes; made inside the engine's scope."""

    model: Any
    optimizer: Optimizer
    slots: list[list[Any]]
    loss_scale: LossScale
    global_step: Any
    num_skipped_steps: Any

    @classmethod
    def create(cls, model: Any, config: Config, *, precision: str) -> "TrainState":
        optimizer = Optimizer.of_variables(config.optimizer, model.trainable_variables)
        return cls(
            model=model,
            optimizer=optimizer,
            slots=[
                [tf.Variable(tf.zeros(v.shape), trainable=False) for _ in range(optimizer.num_slots)]
                for v in model.trainable_variables
            ],
            loss_scale=LossScale.create(is_dynamic=precision == "mixed_float16"),
            global_step=tf.Variable(0, dtype=tf.int64, trainable=False),
            num_skipped_steps=tf.Variable(0, dtype=tf.int64, trainable=False),
        )

    @property
    def variables(self) -> list[Any]:
        """The variables, as TensorFlow's, of the whole state."""
        scalars = [*self.loss_scale.variables, self.global_step, self.num_skipped_steps]
        return [*(v.value for v in self.model.variables), *tf.nest.flatten(self.slots), *scalars]


class TrainStep:
    """Callable on a per-replica `Batch`; updates the state and returns `StepMetrics`."""

    def __init__(
        self, engine: Engine, state: TrainState, config: Config, *, num_train_steps: int, jit_compile: bool
    ) -> None:
        self._engine, self._state, self._config = engine, state, config
        self._num_train_steps = num_train_steps
        self._augmentation = resolve_augmentation(config.augment)
        # Which non-trainable variables the forward pass changes; found while it is traced.
        self._changed: list[int] = []
        self._forward_backward = tf.function(self._forward_backward_on_tensors, jit_compile=jit_compile)
        self._apply = tf.function(self._apply_to_tensors, jit_compile=jit_compile)
        self._step = tf.function(self._on_all_replicas)

    def __call__(self, batch: Batch) -> StepMetrics:
        return StepMetrics(*self._step(batch))

    def _on_all_replicas(self, batch: Batch) -> list[Tensor]:
        metrics = self._engine.run(self._on_replica, batch)
        return [self._engine.first(value) for value in metrics]

    def _on_replica(self, batch: Batch) -> StepMetrics:
        state = self._state
        trainable = [tf.convert_to_tensor(v.value) for v in state.model.trainable_variables]
        fixed = [tf.convert_to_tensor(v.value) for v in state.model.non_trainable_variables]
        local = self._forward_backward(trainable, fixed, batch, tf.convert_to_tensor(state.loss_scale.scale))
        num_gradients = len(trainable)
        reduced = self._engine.all_reduce_sum([*local.gradients, *local.statistics, local.sums])
        gradients, statistics, sums = reduced[:num_gradients], reduced[num_gradients:-1], reduced[-1]
        old_statistics = [fixed[i] for i in self._changed]
        statistics = [s / self._engine.topology.num_replicas for s in statistics]
        slots = [[tf.convert_to_tensor(slot) for slot in slots] for slots in state.slots]
        scalars = [tf.convert_to_tensor(v) for v in self._scalar_variables()]
        updated, metrics = self._apply(trainable, slots, old_statistics, scalars, gradients, statistics, sums)
        self._assign(*updated)
        return StepMetrics(*metrics)

    def _forward_backward_on_tensors(
        self, trainable: list[Tensor], fixed: list[Tensor], batch: Batch, loss_scale: Tensor
    ) -> _Local:
        state, train = self._state, self._config.train
        fixed = self._with_dropout_seeds(fixed, batch.positions)
        images, targets = augment_batch(
            self._augmentation,
            batch.images,
            tf.one_hot(batch.labels, state.model.output_shape[-1]),
            batch.randomness,
            batch.positions,
        )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(trainable)
            logits, new_fixed = state.model.stateless_call(trainable, fixed, images, training=True)
            losses = cross_entropy(targets, logits, train.label_smoothing)
            # A static divisor keeps the scaled loss of float16 in the same range for every batch size; the exact
            # number of examples, known after the reduction, corrects it in `apply`.
            loss = tf.reduce_sum(batch.weights * losses) / train.global_batch_size
            scaled_loss = loss * loss_scale
        gradients = tape.gradient(scaled_loss, trainable, unconnected_gradients="zero")
        self._changed = [i for i, (new, old) in enumerate(zip(new_fixed, fixed, strict=True)) if new is not old]
        self._changed = [i for i in self._changed if not is_seed(state.model.non_trainable_variables[i])]
        # Of a mixed image, the class of its larger part counts.
        is_right = tf.cast(tf.equal(tf.argmax(logits, axis=-1), tf.argmax(targets, axis=-1)), tf.float32)
        sums = [
            tf.reduce_sum(batch.weights * losses),
            tf.reduce_sum(batch.weights * is_right),
            tf.reduce_sum(batch.weights),
        ]
        return _Local(gradients, [new_fixed[i] for i in self._changed], tf.stack(sums))

    def _apply_to_tensors(
        self,
        trainable: list[Tensor],
        slots: list[list[Tensor]],
        old_statistics: list[Tensor],
        scalars: list[Tensor],
        gradients: list[Tensor],
        statistics: list[Tensor],
        sums: Tensor,
    ) -> tuple[Any, StepMetrics]:
        config, state = self._config, self._state
        scale, num_good_steps, step, num_skipped = scalars
        correction = config.train.global_batch_size / (tf.maximum(sums[2], 1.0) * scale)
        gradients = [g * correction for g in gradients]
        # The reduced gradients are the same on every replica, and an inf or nan of any one of them is in the sum.
        is_finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
        gradients, norm = clip_by_global_norm(gradients, config.optimizer.clip_norm)
        rate = learning_rate_at(config.optimizer, step, self._num_train_steps)
        new_trainable, new_slots = state.optimizer.update(
            trainable, gradients, slots, learning_rate=rate, num_updates=step - num_skipped
        )
        new = (new_trainable, new_slots, statistics)
        old = (trainable, slots, old_statistics)
        kept = tf.nest.map_structure(lambda n, o: tf.where(is_finite, n, o), new, old)
        is_skipped = tf.cast(tf.logical_not(is_finite), tf.int64)
        new_scale, num_good_steps = state.loss_scale.next(scale, num_good_steps, is_finite)
        new_scalars = [new_scale, num_good_steps, step + 1, num_skipped + is_skipped]
        metrics = StepMetrics(sums[0] / sums[2], sums[1] / sums[2], is_skipped, new_scale, norm, rate)
        return (*kept, new_scalars), metrics

    def _assign(self, trainable: Any, slots: Any, statistics: Any, scalars: Any) -> None:
        model = self._state.model
        changed = [model.non_trainable_variables[i] for i in self._changed]
        variables = [v.value for v in [*model.trainable_variables, *changed]]
        targets = (variables, self._state.slots, self._scalar_variables())
        for variable, value in zip(
            tf.nest.flatten(targets), tf.nest.flatten(([*trainable, *statistics], slots, scalars)), strict=True
        ):
            variable.assign(value)

    def _scalar_variables(self) -> list[Any]:
        state = self._state
        return [*state.loss_scale.variables, state.global_step, state.num_skipped_steps]

    def _with_dropout_seeds(self, fixed: list[Tensor], positions: Tensor) -> list[Tensor]:
        """Replaces the state of every seed generator by a key of (seed, first position of the slice, layer).

        Left alone, Keras gives every replica the same mask, and a resumed run another one.
        """
        variables = self._state.model.non_trainable_variables
        seeds = [i for i, v in enumerate(variables) if is_seed(v)]
        values = list(fixed)
        for layer, i in enumerate(seeds):
            key = stateless_seed(self._config.train.seed, tf.constant(layer, tf.int64), positions[0], Purpose.DROPOUT)
            # The two words of the state are 32 bits wide; the layer lies above them.
            values[i] = tf.cast((key + key // 2**32) % 2**32, values[i].dtype)
        return values


class EvaluationStep:
    """Callable on a per-replica `Batch`; returns the logits as a per-replica value, [b, num_classes] each."""

    def __init__(self, engine: Engine, model: Any, *, jit_compile: bool) -> None:
        self._engine, self._model = engine, model
        self._forward = tf.function(self._forward_on_tensors, jit_compile=jit_compile)
        self._step = tf.function(lambda batch: engine.run(self._on_replica, batch))

    def __call__(self, batch: Batch) -> Any:
        return self._step(batch)

    def _on_replica(self, batch: Batch) -> Tensor:
        trainable = [tf.convert_to_tensor(v.value) for v in self._model.trainable_variables]
        fixed = [tf.convert_to_tensor(v.value) for v in self._model.non_trainable_variables]
        return self._forward(trainable, fixed, batch.images)

    def _forward_on_tensors(self, trainable: list[Tensor], fixed: list[Tensor], images: Tensor) -> Tensor:
        logits, _ = self._model.stateless_call(trainable, fixed, tf.cast(images, tf.float32), training=False)
        return tf.cast(logits, tf.float32)


def cross_entropy(targets: Tensor, logits: Tensor, label_smoothing: float) -> Tensor:
    """Softmax cross-entropy [b] of targets, each adding up to 1, and logits, both [b, num_classes], in float32.

    Smoothing mixes the target with the uniform distribution (Szegedy et al. 2016, arXiv:1512.00567, sec. 7).
    """
    smoothed = targets * (1.0 - label_smoothing) + label_smoothing / logits.shape[-1]
    return tf.nn.softmax_cross_entropy_with_logits(smoothed, tf.cast(logits, tf.float32))
