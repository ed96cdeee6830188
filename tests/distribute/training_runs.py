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
from trainer.plan.stages import Stage
from trainer.step.state import TrainState
from trainer.step.step_results import StepMetrics
from trainer.step.train_step import TrainStep
from trainer.training.memory import MemoryPolicy, max_parts
from trainer.training.steps import LoneSteps, Steps, WorkerSteps

IMAGE_SIZE_PX = 8
NUM_CLASSES = 10
NUM_STEPS = 20
# So many steps at the end are recorded by the profiler, long after everything has been traced and compiled.
NUM_PROFILED_STEPS = 3
LEARNING_RATE, MOMENTUM = 0.05, 0.9
# Some of the steps have a larger gradient and some a smaller one: a scale that is wrong before or after the clipping
# shows either way.
CLIP_NORM = 0.4
STARVED_FROM_STEP = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What may differ between two runs that must have the same losses, and what may not."""

    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    jit_compile: bool = False
    accumulate_steps: int = 1
    batch_norm: Literal["frozen", "per_replica", "synchronized"] = "frozen"
    global_batch_size: int = 16
    # The last worker has memory for so many examples at a time, from STARVED_FROM_STEP on.
    room: int | None = None

    @property
    def name(self) -> str:
        xla = "on" if self.jit_compile else "off"
        room = "" if self.room is None else f", room for {self.room}"
        return f"{self.precision}, XLA {xla}, {self.accumulate_steps} parts, batch norm {self.batch_norm}{room}"

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
    # What the worker said of its lack of memory.
    notes: list[str]
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
        if run.room is not None:
            x = LittleMemory(run.room)(x)
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


class LittleMemory(keras.layers.Layer):
    """Has no memory where more than `room` examples come at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self.global_step: Any = None

    def call(self, x: Any) -> Any:
        if self.global_step is None or x.shape[0] is None or x.shape[0] <= self._room:
            return x
        # Not by a tensor too large, which TensorFlow tries to allocate for 10 s.
        return x + tf.ensure_shape(tf.numpy_function(_starve, [tf.convert_to_tensor(self.global_step)], tf.float32), [])


def _starve(step: npt.NDArray[np.int64]) -> np.float32:
    if step >= STARVED_FROM_STEP:
        raise MemoryError("a tensor too large")  # which TensorFlow makes a ResourceExhaustedError
    return np.float32(0)


class OneStage:
    """A training step in place of a `StagedStep` of a plan."""

    def __init__(self, step: TrainStep) -> None:
        self._step = step

    def stage_of(self, step: int) -> Stage:
        return Stage(start_step=0, stop_step=NUM_STEPS, trainable="all", image_size_px=IMAGE_SIZE_PX)

    def at(self, step: int) -> TrainStep:
        return self._step

    def use_parts(self, num_parts: int) -> None:
        self._step.use_parts(num_parts)


def train(run: TrainingRun, engine: Engine, profile_dir: pathlib.Path | None = None) -> tuple[Any, Outcome]:
    """Makes `run` on `engine`; returns the model too."""
    config = run.config
    with engine.scope():
        model = build_model(run)
        state = TrainState.create(model, config, precision=run.precision)
    step = TrainStep(engine, state, config, num_train_steps=NUM_STEPS, jit_compile=run.jit_compile)
    notes: list[str] = []
    if run.room is None:
        metrics = _make_steps(run, engine, step, profile_dir)
    else:
        metrics = _make_steps_as_a_run_does(run, engine, step, state, notes)
    copies = _values_on_all_replicas(engine, model)
    return model, Outcome(
        losses=_flat([m.loss for m in metrics]),
        gradient_norms=_flat([m.gradient_norm for m in metrics]),
        variables=copies[0].tolist(),
        num_different_replicas=sum(not np.array_equal(copy, copies[0]) for copy in copies),
        notes=notes,
    )


def _flat(values: list[Any]) -> list[float]:
    return [float(x) for value in values for x in np.ravel(value)]


def _make_steps(
    run: TrainingRun, engine: Engine, step: TrainStep, profile_dir: pathlib.Path | None
) -> list[StepMetrics]:
    metrics = []
    with contextlib.ExitStack() as recording:
        for i, batch in enumerate(engine.distribute(replica_batches(run, engine.topology))):
            if profile_dir is not None and i == NUM_STEPS - NUM_PROFILED_STEPS:
                recording.enter_context(tf.profiler.experimental.Profile(str(profile_dir)))
            metrics.append(step(batch))
    return metrics


def _make_steps_as_a_run_does(
    run: TrainingRun, engine: Engine, step: TrainStep, state: TrainState, notes: list[str]
) -> list[StepMetrics]:
    """Three steps in each call where the worker is alone, so that the first lack of memory is in the middle of one."""
    topology = engine.topology
    if topology.worker_index == topology.num_workers - 1:
        for layer in state.model.layers:
            if isinstance(layer, LittleMemory):
                layer.global_step = state.global_step
    per_replica = BatchDivision(run.global_batch_size, topology.num_replicas).per_replica_batch_size
    memory = MemoryPolicy(num_parts=1, max_parts=max_parts(per_replica), refusal=None, note=notes.append)
    shared: Any = {"engine": engine, "state": state, "memory": memory, "wants_stop": lambda: False}
    dataset = replica_batches(run, topology)

    def batches_from(_: Stage, first: int) -> Any:
        return iter(engine.distribute(dataset.skip(first * topology.num_local_replicas)))

    stages: Any = OneStage(step)
    steps: Steps
    if topology.num_workers > 1:
        steps = WorkerSteps(stages, batches_from(stages.stage_of(0), 0), **shared)
    else:
        steps = LoneSteps(stages, batches_from, **shared)
    num_made = 0
    while num_made < NUM_STEPS:
        num_made += steps.make(min(3, NUM_STEPS - num_made))
    return steps.settle()


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
