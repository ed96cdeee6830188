"""The evaluation step: the forward pass of every replica, many batches in one call."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from trainer.data.input.batch import Batch
from trainer.distribute.engine import Engine
from trainer.step.train_step import Tensor

_SECS_OF_A_CALL = 1.0


class EvaluationStep:
    """The forward pass of all replicas in inference.

    Call it on a per-replica `Batch`; it returns the logits as a per-replica value, [b, num_classes] each. `run_steps`
    makes many steps in one compiled loop.
    """

    def __init__(
        self, engine: Engine, model: Any, *, jit_compile: bool, variable_overrides: Mapping[int, Any] | None = None
    ) -> None:
        """Read `variable_overrides`, by the id of the model's variable (see `TrainState`), in place of the model's."""
        self._engine, self._model = engine, model
        self._overrides = variable_overrides or {}
        self._forward = tf.function(self._forward_on_tensors, jit_compile=jit_compile, autograph=False)
        self._step = tf.function(lambda batch: engine.run(self._on_replica, batch), autograph=False)
        self._loop = tf.function(self._loop_on_all_replicas, autograph=False)

    def __call__(self, batch: Batch) -> Any:
        return self._step(batch)

    def run_steps(self, batches: Any, num_steps: int) -> Tensor:
        """Return the logits [num_steps, num_local_replicas, b, num_classes] of the next batches of an iterator."""
        return self._loop(batches, tf.constant(num_steps))

    def _loop_on_all_replicas(self, batches: Any, num_steps: Tensor) -> Tensor:
        def make_step(i: Tensor, logits: Any) -> tuple[Tensor, Any]:
            outputs = self._engine.run(self._on_replica, next(batches))
            return i + 1, logits.write(i, tf.stack(self._engine.local_values(outputs)))

        start = (tf.constant(0), tf.TensorArray(tf.float32, size=num_steps))
        _, logits = tf.while_loop(lambda i, _: i < num_steps, make_step, start, parallel_iterations=1)
        return logits.stack()

    def _on_replica(self, batch: Batch) -> Tensor:
        trainable = [self._value_of(v) for v in self._model.trainable_variables]
        fixed = [self._value_of(v) for v in self._model.non_trainable_variables]
        return self._forward(trainable, fixed, batch.images)

    def _value_of(self, variable: Any) -> Tensor:
        return tf.convert_to_tensor(self._overrides.get(id(variable), variable.value))

    def _forward_on_tensors(self, trainable: list[Tensor], fixed: list[Tensor], images: Tensor) -> Tensor:
        logits, _ = self._model.stateless_call(trainable, fixed, tf.cast(images, tf.float32), training=False)
        return tf.cast(logits, tf.float32)


def steps_at_once(secs: float, num_steps: int) -> int:
    """Return how many steps make up a second, the longest that a request to stop or progress should wait."""
    return max(1, int(_SECS_OF_A_CALL * num_steps / max(secs, 1e-6)))
