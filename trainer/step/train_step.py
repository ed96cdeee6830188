"""Make a training step on all replicas.

    forward_backward   one replica, no collectives inside, compiled by XLA where asked for
    all_reduce_sum     the engine: gradients, batch-norm statistics, sums and flags in packs
    apply              the same update, or the same decision to skip it, on every replica; compiled likewise

Where there are other workers, the forward and backward pass is a call of its own, and the reduction with the update
another: a worker whose pass fails for lack of memory takes part in the reduction with zeros and a flag, so that nobody
hangs, and no worker updates its state until the step has been made again. A worker alone makes one call of all three.

Everything is a function of tensors: the model is called with the values of its variables and returns its new batch-norm
statistics, so that a step with a non-finite gradient is undone by not assigning it. All variables are assigned after
all reductions have come back: a worker that loses its peers in the middle still has the state after a whole step.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from trainer.config.config import Config
from trainer.data.input.batch import Batch
from trainer.data.sampling.epochs import Epochs
from trainer.distribute.engine import Engine
from trainer.model.layers.batch_norm import SynchronizedBatchNormalization, changing_statistics
from trainer.step.forward_backward import ForwardBackward, ReplicaGradients
from trainer.step.losses import Objective
from trainer.step.out_of_memory import is_out_of_memory
from trainer.step.schedule import Schedule
from trainer.step.state import TrainState
from trainer.step.state_update import StateUpdate
from trainer.step.step_results import StepFlags, StepMetrics
from trainer.system.private_api.keras_graph import all_layers

# The most steps of one call: their metrics are kept while it runs.
MAX_STEPS_AT_ONCE = 4096

Tensor = Any


class TrainStep:
    """The training step of all replicas.

    Call it on a per-replica `Batch`; it updates the state and returns `StepMetrics`. `run_steps` makes many steps in
    one compiled loop, between which no Python runs. Workers that must not hang on another's lack of memory make a step
    in two calls: `begin`, which may fail, and `finish`, which all of them make.
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
        num_parts: int | None = None,
    ) -> None:
        """Train the variables that are trainable in the model now, some or all of those of the state.

        `epochs` are those of the run, for a schedule that counts in them; `objective` is None for one label an image.
        `unfrozen_at` gives, by the id of a variable, the step from which on it is trained, 0 where left out.
        `new_statistics` gives the momentum, by their ids, of batch statistics that training starts from nothing (see
        `debias_moving_average`); the others go on from their values. A replica computes its batch in `num_parts` parts,
        None for what `train.accumulate_steps` says.

        Raises:
            ValueError: synchronised batch statistics under XLA, which has no collectives.
        """
        self._engine, self._state, self._config = engine, state, config
        self._schedule = Schedule.of(config, num_train_steps=num_train_steps, epochs=epochs)
        self._statistics = changing_statistics(state.model)
        self._new_statistics, self._unfrozen_at = new_statistics or {}, unfrozen_at
        self._objective = objective or Objective.of(
            config, task="single_label", num_classes=state.model.output_shape[-1]
        )
        self._is_synchronized = any(isinstance(x, SynchronizedBatchNormalization) for x in all_layers(state.model))
        self._jit_compile = jit_compile
        if self._is_synchronized and jit_compile:
            raise ValueError("synchronised batch statistics are reduced inside the forward pass, which XLA cannot do")
        # Row i is of the i-th step of the last call: what is lost with an error is the result of the call, not this.
        self._journal = tf.Variable(tf.zeros([MAX_STEPS_AT_ONCE, len(StepMetrics._fields)]), trainable=False)
        self._zeros = tf.function(lambda: engine.run(self._make_zeros), autograph=False)
        self.use_parts(config.train.num_parts if num_parts is None else num_parts)

    def use_parts(self, num_parts: int) -> None:
        """Compute the batch of a replica in `num_parts` parts from the next step on."""
        self.num_parts = num_parts
        engine = self._engine
        forward_backward = ForwardBackward(
            self._state.model,
            self._config,
            self._objective,
            statistics=self._statistics,
            synchronize=engine.all_reduce_sum if self._is_synchronized else None,
            num_parts=num_parts,
        )
        # A strategy's collectives must not be called from a function within the replica's.
        self._forward_backward = (
            forward_backward
            if self._is_synchronized
            else tf.function(forward_backward.__call__, jit_compile=self._jit_compile, autograph=False)
        )
        self._update = StateUpdate(
            self._state,
            self._config,
            self._schedule,
            statistics=self._statistics,
            new_statistics=self._new_statistics,
            unfrozen_at=self._unfrozen_at,
            num_parts=num_parts,
            jit_compile=self._jit_compile,
        )
        self._step = tf.function(self._on_all_replicas, autograph=False)
        self._loop = tf.function(self._loop_on_all_replicas, autograph=False)
        self._begin = tf.function(lambda batch: engine.run(self.compute_gradients, batch), autograph=False)
        self._finish = tf.function(self._finish_on_all_replicas, autograph=False)

    def __call__(self, batch: Batch) -> StepMetrics:
        return StepMetrics(*self._step(batch))

    def run_steps(self, batches: Any, num_steps: int) -> StepMetrics:
        """Make `num_steps` steps on the next of `batches`, the iterator of a dataset that the engine distributes.

        There are at most MAX_STEPS_AT_ONCE of them.
        """
        return StepMetrics(*self._loop(batches, tf.constant(num_steps)))

    def first_metrics(self, num_steps: int) -> StepMetrics:
        """Return the metrics of the first steps of a call of `run_steps` that ended in an error."""
        return _columns_of(self._journal[:num_steps])

    def begin(self, batch: Batch) -> ReplicaGradients | None:
        """Compute the forward and backward pass of this worker's replicas; return None if memory does not suffice."""
        try:
            local: ReplicaGradients = self._begin(batch)
        except tf.errors.OpError as e:
            # The others of a synchronised forward pass are in a collective, and would wait for ever.
            if self._is_synchronized or not is_out_of_memory(e):
                raise
            return None
        return local

    def finish(self, local: ReplicaGradients | None, *, wants_stop: bool) -> tuple[StepMetrics, StepFlags]:
        """Reduce what `begin` returned over all workers, and update the state; all workers call this together.

        After a step for which the memory of any worker did not suffice, nobody updates anything any more, in this step
        and those that follow, until `make_again`.
        """
        flags = tf.constant([float(wants_stop), float(local is None)])
        metrics, flags = self._finish(self._zeros() if local is None else local, flags)
        return StepMetrics(*metrics), StepFlags(*flags)

    def make_again(self) -> None:
        """Let the next step update the state again."""
        self._state.is_withheld.assign(0)

    def _finish_on_all_replicas(self, local: Any, flags: Tensor) -> Any:
        metrics, flags = self._engine.run(self._finish_on_replica, local, flags)

        def first(values: Any) -> list[Tensor]:
            return [self._engine.local_values(value)[0] for value in values]

        return first(metrics), first(flags)

    def _finish_on_replica(self, local: ReplicaGradients, flags: Tensor) -> tuple[StepMetrics, StepFlags]:
        reduced = self.reduce_gradients(local._replace(sums=tf.concat([local.sums, flags], axis=0)))
        sums, flags = reduced.sums[:3], StepFlags(*tf.unstack(reduced.sums[3:]))
        withheld = self._state.is_withheld
        is_withheld = tf.logical_or(flags.is_out_of_memory > 0, withheld > 0)
        metrics = self._update(reduced._replace(sums=sums), is_withheld)
        withheld.assign(tf.cast(is_withheld, tf.int64))
        return metrics, flags

    def _make_zeros(self) -> ReplicaGradients:
        return ReplicaGradients(
            [tf.zeros(v.shape) for v in self._state.model.trainable_variables],
            [tf.zeros(v.shape) for v in self._statistics],
            tf.zeros([3]),
        )

    def _on_all_replicas(self, batch: Batch) -> StepMetrics:
        metrics = self._engine.run(self._on_replica, batch)
        return StepMetrics(*(self._engine.local_values(value)[0] for value in metrics))

    def _loop_on_all_replicas(self, batches: Any, num_steps: Tensor) -> StepMetrics:
        def make_step(i: Tensor) -> Tensor:
            row = tf.stack([tf.cast(value, tf.float32) for value in self._on_all_replicas(next(batches))])
            with tf.control_dependencies([self._journal.scatter_nd_update([[i]], [row])]):
                return (i + 1,)

        tf.while_loop(lambda i: i < num_steps, make_step, (tf.constant(0),), parallel_iterations=1)
        return _columns_of(self._journal[:num_steps])

    def _on_replica(self, batch: Batch) -> StepMetrics:
        return self._update(self.reduce_gradients(self.compute_gradients(batch)), tf.constant(False))

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


def _columns_of(rows: Tensor) -> StepMetrics:
    return StepMetrics(*tf.unstack(rows, axis=1))
