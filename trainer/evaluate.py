"""Exact evaluation: every example of a split once, on any number of replicas."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.pipeline import EvaluationStream
from trainer.distribute.engine import Engine
from trainer.steps import EvaluationStep

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class Evaluator:
    """Evaluates one model on one split, as often as wanted; the graph is traced once."""

    def __init__(self, engine: Engine, model: Any, stream: EvaluationStream, *, jit_compile: bool) -> None:
        self._engine, self._stream = engine, stream
        self._step = EvaluationStep(engine, model, jit_compile=jit_compile)

    @property
    def num_steps(self) -> int:
        return self._stream.num_steps

    def run(self, on_step: Callable[[int], None] = lambda _: None) -> tuple[Labels, Logits]:
        """Returns the labels [n] and the logits [n, num_classes] of all n examples, in the order of the split.

        `on_step` is called with the number of finished steps.
        """
        labels, logits = [], []
        for i, batch in enumerate(self._engine.distribute(self._stream.dataset())):
            is_real = self._engine.gather(batch.weights).reshape(-1) > 0
            outputs = self._engine.gather(self._step(batch))
            labels.append(self._engine.gather(batch.labels).reshape(-1)[is_real])
            logits.append(outputs.reshape(-1, outputs.shape[-1])[is_real])
            on_step(i + 1)
        return np.concatenate(labels), np.concatenate(logits)
