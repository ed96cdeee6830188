"""Exact evaluation: every example of a split once, on any number of replicas."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer import classification_metrics
from trainer.checkpoint import Weights, Which, find_checkpoint, load_classifier
from trainer.classification_metrics import Evaluation
from trainer.data.geometry import Geometry
from trainer.data.manifest import Manifest, SplitName
from trainer.data.pipeline import EvaluationStream
from trainer.data.records import verify_shards
from trainer.data.split_reader import SplitReader
from trainer.data.storage import DatasetPath, parse_path
from trainer.distribute.engine import Engine
from trainer.errors import DataError
from trainer.progress import task_progress
from trainer.run_dir import RunDir
from trainer.steps import EvaluationStep

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class Evaluator:
    """Evaluates one model on one split, as often as wanted; the graph is traced once."""

    def __init__(
        self,
        engine: Engine,
        model: Any,
        stream: EvaluationStream,
        *,
        jit_compile: bool,
        instead: Mapping[int, Any] | None = None,
    ) -> None:
        """`instead`: see `EvaluationStep`."""
        self._engine, self._stream = engine, stream
        self._step = EvaluationStep(engine, model, jit_compile=jit_compile, instead=instead)

    @property
    def num_steps(self) -> int:
        return self._stream.num_steps

    def run(self, on_step: Callable[[int], None] = lambda _: None) -> tuple[Labels, Logits]:
        """Returns the labels [n] (of several labels each, [n, num_classes]) and the logits [n, num_classes] of all n
        examples, in the order of the split.

        `on_step` is called with the number of finished steps.
        """
        labels, logits = [], []
        for i, batch in enumerate(self._engine.distribute(self._stream.dataset())):
            is_real = self._engine.gather(batch.weights).reshape(-1) > 0
            outputs = self._engine.gather(self._step(batch))
            found = self._engine.gather(batch.labels)
            labels.append(found.reshape(-1, *found.shape[2:])[is_real])
            logits.append(outputs.reshape(-1, outputs.shape[-1])[is_real])
            on_step(i + 1)
        return np.concatenate(labels), np.concatenate(logits)


def evaluate_run(
    run: RunDir,
    split: SplitName,
    engine: Engine,
    *,
    which: Which = "best",
    weights: Weights = "auto",
    dataset_dir: DatasetPath | None = None,
    per_replica_batch_size: int = 32,
    jit_compile: bool = False,
) -> Evaluation:
    """Evaluates a checkpoint of `run` in float32 and writes `evaluation/<split>.json` and its arrays.

    Args:
        dataset_dir: where the dataset of the run lies now; None: where it was trained from.

    Raises:
        RunError: no run or no checkpoint.
        DataError: the dataset is gone, damaged, or not the one that the run was trained on.
    """
    info = run.info()
    dataset_dir = dataset_dir or parse_path(info.dataset_dir)
    manifest = Manifest.load(dataset_dir)
    if manifest.class_names != info.class_names:
        raise DataError(
            f"{dataset_dir} has other classes than the run {run.path} was trained on; give --data the run's dataset"
        )
    verify_shards(dataset_dir, manifest, [split])
    step = find_checkpoint(run, which)
    with engine.scope():
        model = load_classifier(run, which=which, weights=weights)
    with SplitReader(dataset_dir, manifest, split) as reader:
        stream = EvaluationStream(
            reader=reader,
            geometry=Geometry(image_size_px=info.image_size_px, resize=run.config().data.resize),
            per_replica_batch_size=per_replica_batch_size,
            topology=engine.topology,
        )
        evaluator = Evaluator(engine, model, stream, jit_compile=jit_compile)
        with task_progress(f"evaluate {split}", evaluator.num_steps) as progress:
            labels, logits = evaluator.run(lambda _: progress.advance())
    evaluation = classification_metrics.summarize(labels, logits, info.class_names, split=split, global_step=step)
    classification_metrics.save_arrays(run.evaluation_dir, split=split, global_step=step, labels=labels, logits=logits)
    evaluation.save(run.evaluation_dir)
    return evaluation
