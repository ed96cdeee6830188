"""Small trainable set-ups on logical CPU devices, shared by the tests of the training step."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.config.config import Config, load_config
from trainer.data.input.batch import Batch
from trainer.distribute.mirrored import TfStrategyEngine, make_engine
from trainer.distribute.topology import BatchDivision, Topology
from trainer.model.layers.batch_norm import SynchronizedBatchNormalization, momenta_of_statistics
from trainer.model.layers.dropout import ExampleDropout
from trainer.step.state import TrainState
from trainer.step.train_step import TrainStep
from trainer.system import tf_runtime

NUM_CPU_DEVICES = 4
IMAGE_SIZE_PX = 12
NUM_CLASSES = 5


def make_test_engine(num_replicas: int) -> TfStrategyEngine:
    # Logical devices are fixed once a process has run TensorFlow: every test takes its replicas from the same four.
    tf_runtime.split_cpu(NUM_CPU_DEVICES)
    strategy = "single" if num_replicas == 1 else "mirrored"
    return make_engine(Topology(strategy=strategy, device="cpu", num_local_replicas=num_replicas))


def build_small_model(
    precision: str, *, batch_norm_trains: bool = False, is_synchronized: bool = False, dropout: float = 0.0
) -> Any:
    """Five layers with weights: two convolutions, two batch normalisations, one dense; the same weights every time."""
    batch_norm = SynchronizedBatchNormalization if is_synchronized else keras.layers.BatchNormalization
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    try:
        images = keras.Input((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3))
        x = keras.layers.Rescaling(1 / 255)(images)
        for num_filters in (8, 16):
            x = keras.layers.Conv2D(num_filters, 3, strides=2)(x)
            x = batch_norm(trainable=batch_norm_trains, momentum=0.9)(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        if dropout:
            x = ExampleDropout(dropout)(x)
        return keras.Model(images, keras.layers.Dense(NUM_CLASSES, dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")


@dataclasses.dataclass
class Training:
    """A small model on some replicas, and a training set of random images to step over."""

    num_replicas: int
    precision: str = "float32"
    jit_compile: bool = False
    global_batch_size: int = 16
    batch_norm_trains: bool = False
    is_synchronized: bool = False
    dropout: float = 0.0
    overrides: tuple[str, ...] = ("optimizer.name=sgd", "optimizer.learning_rate=0.05")
    num_train_steps: int = 10
    statistics_are_new: bool = False

    def __post_init__(self) -> None:
        self.config: Config = load_config(
            overrides=[f"train.global_batch_size={self.global_batch_size}", *self.overrides]
        )
        self.engine = make_test_engine(self.num_replicas)
        with self.engine.scope():
            self.model = build_small_model(
                self.precision,
                batch_norm_trains=self.batch_norm_trains,
                is_synchronized=self.is_synchronized,
                dropout=self.dropout,
            )
            self.state = TrainState.create(self.model, self.config, precision=self.precision)
            self.state.start_averages()
        self.step = TrainStep(
            self.engine,
            self.state,
            self.config,
            num_train_steps=self.num_train_steps,
            jit_compile=self.jit_compile,
            new_statistics=momenta_of_statistics(self.model) if self.statistics_are_new else None,
        )

    def batches(self, num_steps: int, *, weight_of: dict[int, float] | None = None) -> Any:
        """Per-replica batches of `num_steps` steps; `weight_of` overrides the weight of single positions."""
        division = BatchDivision(self.global_batch_size, self.num_replicas)
        random = np.random.default_rng(0)
        size = (num_steps * self.global_batch_size, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
        images = random.integers(0, 256, size, dtype=np.uint8)
        labels = random.integers(0, NUM_CLASSES, size[0])
        b = division.per_replica_batch_size

        def elements() -> Any:
            for step in range(num_steps):
                for replica in range(self.num_replicas):
                    start, stop = division.slice_of(replica)
                    positions = step * self.global_batch_size + start + np.arange(b) % (stop - start)
                    weights = (np.arange(b) < stop - start).astype(np.float32)
                    for position, weight in (weight_of or {}).items():
                        weights[positions == position] *= weight
                    yield Batch(images[positions], labels[positions], weights, positions, np.zeros([b, 0], np.float32))

        signature = Batch(
            tf.TensorSpec([b, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3], tf.uint8),
            tf.TensorSpec([b], tf.int64),
            tf.TensorSpec([b], tf.float32),
            tf.TensorSpec([b], tf.int64),
            tf.TensorSpec([b, 0], tf.float32),
        )
        return self.engine.distribute(tf.data.Dataset.from_generator(elements, output_signature=signature))

    def losses(self, num_steps: int) -> np.ndarray:
        return np.array([float(self.step(batch).loss) for batch in self.batches(num_steps)])

    def weights(self) -> list[np.ndarray]:
        return [v.numpy() for v in self.model.variables]

    def copies(self, variable: Any) -> list[np.ndarray]:
        """The value of a Keras variable on each replica."""
        return [copy.numpy() for copy in self.engine._strategy.experimental_local_results(variable.value)]
