"""Run a model over every example of a split exactly once, on any number of replicas."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset.split_reader import SplitReader
from trainer.data.input.pipeline import EvaluationStream
from trainer.data.input.read_errors import as_data_errors
from trainer.distribute.engine import Engine
from trainer.step.evaluation_step import EvaluationStep, steps_at_once

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class Evaluator:
    """Evaluates a model on a split any number of times; the graph is traced once."""

    def __init__(
        self,
        engine: Engine,
        model: Any,
        stream: EvaluationStream,
        *,
        jit_compile: bool,
        variable_overrides: Mapping[int, Any] | None = None,
    ) -> None:
        """`variable_overrides`: see `EvaluationStep`."""
        self._engine, self._num_classes = engine, int(model.output_shape[-1])
        self._step = EvaluationStep(engine, model, jit_compile=jit_compile, variable_overrides=variable_overrides)
        self._set_stream(stream)

    def _set_stream(self, stream: EvaluationStream) -> None:
        self._stream = stream
        # An endless iterator at the beginning of the split. It is made once: that takes longer than evaluating a few
        # hundred images with features.
        self._batches: Iterator[Any] | None = None
        self._labels: npt.NDArray[Any] | None = None

    def on(self, stream: EvaluationStream) -> "Evaluator":
        """Return an evaluator of the same model, with its traced graph, on another split."""
        other = copy.copy(self)
        other._set_stream(stream)
        return other

    @property
    def num_steps(self) -> int:
        return self._stream.num_steps

    def run(self, on_steps: Callable[[int], None] = lambda _: None) -> tuple[Labels, Logits]:
        """Return the labels and the logits [n, num_classes] of all n examples, in the order of the split.

        Labels are [n], or [n, num_classes] for a multi-label split. `on_steps` is called with the number of steps that
        were finished since its last call.

        Raises:
            DataError: a record is damaged.
        """
        batches = self._batches or iter(self._engine.distribute(self._stream.dataset().repeat()))
        self._batches = None
        make_steps = self._alone if self._engine.topology.num_workers == 1 else self._with_others
        if self._labels is None:
            self._labels = _read_labels(self._stream.reader)
        # Filled batch by batch: joining a list of batches would need twice the memory.
        logits, start = np.empty([len(self._labels), self._num_classes], np.float32), 0
        with as_data_errors():
            for found in make_steps(batches, on_steps):
                rows = found.reshape(-1, self._num_classes)
                # Batches hold the examples in order; the examples that fill up the last ones are at the end.
                logits[start : start + len(rows)] = rows[: len(logits) - start]
                start += len(rows)
        self._batches = batches
        return self._labels, logits

    def _alone(self, batches: Iterator[Any], on_steps: Callable[[int], None]) -> Iterator[Logits]:
        step, num_at_once = 0, 1
        while step < self.num_steps:
            started_secs = time.monotonic()
            num_steps = min(num_at_once, self.num_steps - step)
            yield self._step.run_steps(batches, num_steps).numpy()
            if step:
                num_at_once = steps_at_once(time.monotonic() - started_secs, num_steps)
            step += num_steps
            on_steps(num_steps)

    def _with_others(self, batches: Iterator[Any], on_steps: Callable[[int], None]) -> Iterator[Logits]:
        for _ in range(self.num_steps):
            yield self._engine.gather(self._step(next(batches)))
            on_steps(1)


def _read_labels(reader: SplitReader) -> npt.NDArray[Any]:
    """Read the labels: [n] int64, or [n, num_classes] uint8 for a multi-label split."""
    return reader.labels().astype(np.int64) if reader.num_multi_hot is None else reader.multi_hot_labels()
