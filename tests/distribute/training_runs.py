"""One small training, described so that any engine in any process can make it, and what it leaves to compare."""

import contextlib
import dataclasses
import pathlib
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config.config import Config, load_config
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.decode.geometry import Geometry
from trainer.data.input.batch import Batch
from trainer.data.input.pipeline import EvaluationStream
from trainer.distribute.engine import Engine
from trainer.distribute.topology import BatchDivision, Topology
from trainer.evaluation.evaluator import Evaluator
from trainer.model.layers.batch_norm import with_synchronized_statistics
from trainer.step.state import TrainState
from trainer.step.train_step import TrainStep

IMAGE_SIZE_PX = 8
NUM_CLASSES = 10
NUM_STEPS = 20
# So many steps at the end are recorded by the profiler, long after everything has been traced and compiled.
NUM_PROFILED_STEPS = 3
LEARNING_RATE, MOMENTUM = 0.05, 0.9
# Some of the steps have a larger gradient and some a smaller one: a scale that is wrong before or after the clipping
# shows either way.
CLIP_NORM = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What may differ between two runs that must have the same losses, and what may not."""

    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    jit_compile: bool = False
    accumulate_steps: int = 1
    batch_norm: Literal["frozen", "per_replica", "synchronized"] = "frozen"
    global_batch_size: int = 16

    @property
    def name(self) -> str:
        xla = "on" if self.jit_compile else "off"
        return f"{self.precision}, XLA {xla}, {self.accumulate_steps} parts, batch norm {self.batch_norm}"

    @property
    def config(self) -> Config:
        return load_config(
            overrides=[
                f"train.global_batch_size={self.global_batch_size}",
                f"train.accumulate_steps={self.accumulate_steps}",
                "optimizer.name=sgd",
                f"optimizer.learning_rate={LEARNING_RATE}",
                f"optimizer.momentum={MOMENTUM}",
                f"optimizer.clip_norm={CLIP_NORM}",
            ]
        )


@dataclasses.dataclass
class Outcome:
    """What one worker saw of a run."""

    losses: list[float]
    gradient_norms: list[float]
    # All variables of the model after the last step, one after the other, as the first replica has them.
    variables: list[float]
    num_different_replicas: int
    # Filled in by the worker program.
    was_profiled: bool = False
    logits: list[list[float]] = dataclasses.field(default_factory=list)
    compiled_convolutions: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    num_executions: int = 0
    num_loose_convolutions: int = 0


def build_model(run: TrainingRun) -> Any:
    """Five layers with weights: two convolutions, two batch normalisations, one dense; the same weights every time."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(run.precision)
    try:
        images = keras.Input((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3))
        x = keras.layers.Rescaling(1 / 128, offset=-1)(images)
        for num_filters in (8, 16):
            x = keras.layers.Conv2D(num_filters, 3, strides=2, padding="same")(x)
            x = keras.layers.BatchNormalization(trainable=run.batch_norm != "frozen", momentum=0.9)(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(images, keras.layers.Dense(NUM_CLASSES, dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    if run.batch_norm != "synchronized":
        return model
    synchronized = with_synchronized_statistics(model)
    synchronized.set_weights(model.get_weights())
    return synchronized


def global_batches(run: TrainingRun) -> list[Batch]:
    """The whole batch of each step: noisy pictures, some of weight 0.5, and in some steps three of weight zero."""
    random = np.random.default_rng(0)
    b = run.global_batch_size
    pictures = random.integers(0, 128, [NUM_CLASSES, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3], dtype=np.uint8)
    batches = []
    for step in range(NUM_STEPS):
        labels = random.integers(0, NUM_CLASSES, b)
        images = pictures[labels] + random.integers(0, 128, [b, *pictures.shape[1:]], dtype=np.uint8)
        weights = np.where(np.arange(b) % 5 == 1, 0.5, 1.0).astype(np.float32)
        if step % 4 == 3:
            weights[-3:] = 0.0
        batches.append(Batch(images, labels, weights, step * b + np.arange(b), np.zeros([b, 0], np.float32)))
    return batches


def replica_batches(run: TrainingRun, topology: Topology) -> Any:
    """A tf.data dataset of what the replicas of this worker get, in turn."""
    division = BatchDivision(run.global_batch_size, topology.num_replicas)
    slots = np.arange(division.per_replica_batch_size)
    elements = []
    for batch in global_batches(run):
        for replica in topology.local_replicas:
            start, stop = division.slice_of(replica)
            part = Batch(*(array[start + slots % (stop - start)] for array in batch))
            elements.append(part._replace(weights=np.where(slots < stop - start, part.weights, 0).astype(np.float32)))
    return tf.data.Dataset.from_tensor_slices(Batch(*(np.stack(arrays) for arrays in zip(*elements, strict=True))))


def train(run: TrainingRun, engine: Engine, profile_dir: pathlib.Path | None = None) -> tuple[Any, Outcome]:
    """Makes `run` on `engine`; returns the model too."""
    config = run.config
    with engine.scope():
        model = build_model(run)
        state = TrainState.create(model, config, precision=run.precision)
    step = TrainStep(engine, state, config, num_train_steps=NUM_STEPS, jit_compile=run.jit_compile)
    metrics = []
    with contextlib.ExitStack() as recording:
        for i, batch in enumerate(engine.distribute(replica_batches(run, engine.topology))):
            if profile_dir is not None and i == NUM_STEPS - NUM_PROFILED_STEPS:
                recording.enter_context(tf.profiler.experimental.Profile(str(profile_dir)))
            metrics.append(step(batch))
    copies = _values_on_all_replicas(engine, model)
    return model, Outcome(
        losses=[float(m.loss) for m in metrics],
        gradient_norms=[float(m.gradient_norm) for m in metrics],
        variables=copies[0].tolist(),
        num_different_replicas=sum(not np.array_equal(copy, copies[0]) for copy in copies),
    )


def open_test_split(dataset_dir: pathlib.Path) -> SplitReader:
    return SplitReader(dataset_dir, Manifest.load(dataset_dir), "test")


def make_evaluator(engine: Engine, model: Any, reader: SplitReader) -> Evaluator:
    stream = EvaluationStream(
        reader=reader,
        geometry=Geometry(image_size_px=IMAGE_SIZE_PX, resize="crop"),
        per_replica_batch_size=32,
        topology=engine.topology,
    )
    return Evaluator(engine, model, stream, jit_compile=False)


def assign_flat(model: Any, values: list[float]) -> None:
    """Gives the model the variables of an `Outcome`."""
    flat = np.array(values, np.float32)
    ends = np.cumsum([int(np.prod(v.shape)) for v in model.variables])
    assert ends[-1] == len(flat)
    for variable, part in zip(model.variables, np.split(flat, ends[:-1]), strict=True):
        variable.assign(part.reshape(variable.shape))


def _values_on_all_replicas(engine: Engine, model: Any) -> npt.NDArray[np.float32]:
    """[num_replicas, n]: each replica's own copy of all variables."""

    def flatten() -> Any:
        return tf.concat([tf.reshape(v.value, [-1]) for v in model.variables], axis=0)

    return np.asarray(engine.gather(tf.function(lambda: engine.run(flatten))()))
