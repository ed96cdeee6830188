"""The input pipeline: from the records of a prepared dataset to per-replica batches in static shapes.

    numbers of elements -> positions, examples, random numbers -> records -> pixels -> batches
    numbers of elements -> positions, examples, random numbers -> cached pixels, a batch at a time

Element k of a worker's dataset is for its replica k mod num_local_replicas: the engine deals them in turn. Pixels stay
uint8 up to the device.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data.augmentation.changes import draw_randomness
from trainer.data.augmentation.presets import Augmentation
from trainer.data.augmentation.random_crop import load_training_image
from trainer.data.dataset import records
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.dataset.storage import DatasetPath
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.input.batch import Batch
from trainer.data.input.read_errors import raising_in_graph
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology

Tensor = Any
# Decoded images of a split in its order, [num_examples, size, size, 3]; see `pixel_cache`. Or their features, float32
# [num_examples * num_views, ...]; see `trainer.features`.
Pixels = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources that the input pipeline of a process may use.

    Attributes:
        num_threads: 0 for all cores.
        num_readers: Concurrent reads.
        ram_budget_bytes: Bound on the buffers that tf.data tunes; None for its own default.
    """

    num_threads: int = 0
    num_readers: int = 2
    ram_budget_bytes: int | None = None

    def apply(self, dataset: Any) -> Any:
        options = tf.data.Options()
        # A pool of its own: decoding neither waits for the operations of the training step nor holds them up.
        options.threading.private_threadpool_size = self.num_threads
        if self.ram_budget_bytes is not None:
            options.autotune.ram_budget = self.ram_budget_bytes
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return dataset.with_options(options)


class Draw(NamedTuple):
    """The examples of one replica's batch, before they are read."""

    examples: Tensor  # [b] int64
    visits: Tensor  # [b] int64, see `order.Draws`
    weights: Tensor  # [b] float32, 0 for examples that fill up the slice
    positions: Tensor  # [b] int64
    randomness: Tensor  # [b, k] float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingStream:
    """The batches of one worker in training, from any step on."""

    reader: SplitReader
    order: ExampleOrder
    geometry: Geometry
    augmentation: Augmentation
    division: BatchDivision
    topology: Topology
    # Later positions fill up the last batch, with weight zero.
    num_positions: int
    # Whether the loss is weighted by the weights of the examples; weighted sampling draws by them instead.
    weighs_loss: bool = True
    scaled_decoding: bool = True
    # Decoded images, or features; only without random crops.
    pixels: Pixels | None = None
    # Rows of `pixels` for each example; every visit takes the next one.
    num_views: int = 1
    resources: Resources = Resources()

    def dataset(self, start_step: int, num_train_steps: int) -> Any:
        """Return a tf.data dataset of `Batch` of steps [start_step, num_train_steps), of the local replicas in turn."""
        assert self.pixels is None or not self.augmentation.crops, "a random crop has other pixels each time"
        num_local = self.topology.num_local_replicas
        draws = tf.data.Dataset.range(start_step * num_local, num_train_steps * num_local).map(as_is(self.draw))
        if self.pixels is None:
            batches = decoded_batches(draws, self.reader, self.decode, self.resources)
        else:
            batches = cached_batches(draws, self.reader, self.pixels, self.resources, num_views=self.num_views)
        batches = batches.map(as_is(_weigh if self.weighs_loss else _leave_weights))
        return self.resources.apply(batches.prefetch(2 * num_local))

    def draw(self, element: Tensor) -> Draw:
        """Return the examples of element `element`, an int64 scalar: a replica's slice of a batch, filled up to b."""
        num_local = self.topology.num_local_replicas
        slices = np.array([self.division.slice_of(r) for r in range(self.topology.num_replicas)], np.int64)
        start, stop = tf.unstack(tf.gather(slices, element % num_local + self.topology.local_replicas.start), num=2)
        i = tf.range(self.division.per_replica_batch_size, dtype=tf.int64)
        first = element // num_local * self.division.global_batch_size + start
        # A slice is filled up with its own examples, so that batch statistics see real images.
        positions = first + i % (stop - start)
        is_real = tf.logical_and(i < stop - start, positions < self.num_positions)
        examples, visits = self.order.draw(positions)
        randomness = draw_randomness(
            self.augmentation,
            seed=self.order.seed,
            visits=visits,
            examples=examples,
            image_size_px=self.geometry.image_size_px,
        )
        return Draw(examples, visits, tf.cast(is_real, tf.float32), positions, randomness)

    def decode(self, encoded: Tensor, draw: Draw) -> Tensor:
        """Decode encoded bytes to pixels [size, size, 3] uint8, cropped as their row of a `Draw` says."""
        return load_training_image(
            encoded,
            self.geometry,
            self.augmentation,
            seed=self.order.seed,
            visit=draw.visits,
            example=draw.examples,
            scaled_decoding=self.scaled_decoding,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationStream:
    """The batches of one worker in evaluation: every example once, in order, the last ones filled up with weight 0."""

    reader: SplitReader
    geometry: Geometry
    per_replica_batch_size: int
    topology: Topology
    pixels: Pixels | None = None
    resources: Resources = Resources()

    @property
    def num_steps(self) -> int:
        return math.ceil(self.reader.num_examples / (self.per_replica_batch_size * self.topology.num_replicas))

    def dataset(self) -> Any:
        """Return a tf.data dataset of `Batch`, one for each local replica in turn."""
        num_local = self.topology.num_local_replicas
        draws = tf.data.Dataset.range(self.num_steps * num_local).map(as_is(self.draw))
        if self.pixels is None:
            batches = decoded_batches(draws, self.reader, self.decode, self.resources)
        else:
            batches = cached_batches(draws, self.reader, self.pixels, self.resources)
        batches = batches.map(as_is(_leave_weights))
        return self.resources.apply(batches.prefetch(2 * num_local))

    def draw(self, element: Tensor) -> Draw:
        """Return the examples of element `element`, an int64 scalar."""
        num_local = self.topology.num_local_replicas
        replica = element % num_local + self.topology.local_replicas.start
        batch = element // num_local * self.topology.num_replicas + replica
        positions = batch * self.per_replica_batch_size + tf.range(self.per_replica_batch_size, dtype=tf.int64)
        is_real = positions < self.reader.num_examples
        positions = tf.minimum(positions, self.reader.num_examples - 1)
        randomness = tf.zeros([self.per_replica_batch_size, 0])
        return Draw(positions, tf.zeros_like(positions), tf.cast(is_real, tf.float32), positions, randomness)

    def decode(self, encoded: Tensor, _: Draw) -> Tensor:
        """Decode encoded bytes to pixels [size, size, 3] uint8."""
        return preprocess.load_image(encoded, self.geometry)


def open_split(dataset_dir: DatasetPath, split: SplitName) -> SplitReader:
    """Open a split; raise DataError if it does not exist, or a shard of it is missing or cut short."""
    return SplitReader(dataset_dir, Manifest.load(dataset_dir), split)


def decoded_batches(draws: Any, reader: SplitReader, decode: Any, resources: Resources) -> Any:
    """Read, decode and batch a dataset of `Draw` into one of (`Batch`, weights [b] of the examples).

    `decode` takes encoded bytes and the row of a `Draw`, and returns [size, size, 3] uint8.
    """
    per_replica_batch_size, num_random = draws.element_spec.randomness.shape

    def read(draw: Draw) -> tuple[Any, ...]:
        if num_random == 0:
            # TensorFlow 2.21 reads outside of its memory when it takes rows from a tensor without elements.
            draw = draw._replace(randomness=tf.zeros([per_replica_batch_size, 1]))
        return (*records.parse_examples(read_payloads(reader, draw.examples), reader.num_multi_hot), draw)

    def decode_row(encoded: Tensor, label: Tensor, weight: Tensor, draw: Draw) -> tuple[Batch, Tensor]:
        image = decode(encoded, draw)
        return Batch(image, label, draw.weights, draw.positions, draw.randomness[:num_random]), weight

    dataset = draws.map(as_is(read), num_parallel_calls=resources.num_readers, deterministic=True).unbatch()
    dataset = dataset.map(as_is(decode_row), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(per_replica_batch_size, drop_remainder=True)


def cached_batches(draws: Any, reader: SplitReader, pixels: Pixels, resources: Resources, *, num_views: int = 1) -> Any:
    """Do the same as `decoded_batches` with decoded images or features from a cache."""
    label_dtype = np.int64 if reader.num_multi_hot is None else np.float32
    labels = reader.labels() if reader.num_multi_hot is None else reader.multi_hot_labels()
    weights = reader.weights()

    def gather(examples: npt.NDArray[np.int64], visits: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
        rows = examples * num_views + visits % num_views
        return np.take(pixels, rows, axis=0), labels[examples].astype(label_dtype), weights[examples]

    def read(draw: Draw) -> tuple[Batch, Tensor]:
        images, label, weight = tf.numpy_function(
            gather, [draw.examples, draw.visits], [pixels.dtype, label_dtype, tf.float32]
        )
        for tensor, array in ((images, pixels), (label, labels), (weight, weights)):
            tensor.set_shape([draw.examples.shape[0], *array.shape[1:]])
        return Batch(images, label, draw.weights, draw.positions, draw.randomness), weight

    return draws.map(as_is(read), num_parallel_calls=resources.num_readers, deterministic=True)


def read_payloads(reader: SplitReader, examples: Tensor) -> Tensor:
    """Read the serialized examples [b] string of `examples` [b] int64, in one call out of the graph.

    Who consumes the batches does so within `as_data_errors`, which raises the DataError of a damaged record.
    """

    def read(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        return np.array(reader.read(indices), object)

    payloads = tf.numpy_function(raising_in_graph(read), [examples], tf.string)
    payloads.set_shape(examples.shape)
    return payloads


def as_is(function: Any) -> Any:
    """Exclude `function` from AutoGraph, which takes seconds and finds no Python control flow over tensors."""
    return tf.autograph.experimental.do_not_convert(function)


def _leave_weights(batch: Batch, _: Tensor) -> Batch:
    return batch


def _weigh(batch: Batch, example_weights: Tensor) -> Batch:
    return batch._replace(weights=batch.weights * example_weights)
