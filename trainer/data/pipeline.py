"""Prepared datasets to per-replica batches: which positions, their records, decoded and resized, in static shapes."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data import preprocess, records
from trainer.data.augment import Augmentation
from trainer.data.batch import Batch
from trainer.data.geometry import Geometry
from trainer.data.manifest import Manifest, SplitName
from trainer.data.order import ExampleOrder
from trainer.data.training_image import load_training_image
from trainer.distribute.topology import BatchDivision, Topology

Tensor = Any

# Element k of a worker's dataset is for its replica k mod num_local_replicas: the engine deals them in turn.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingStream:
    """The training examples of one worker, from any step on."""

    reader: records.SplitReader
    order: ExampleOrder
    geometry: Geometry
    augmentation: Augmentation
    division: BatchDivision
    topology: Topology
    # Positions at and after this one only fill up the last batch, with weight zero.
    num_positions: int
    num_threads: int = 0

    def dataset(self, start_step: int, num_train_steps: int) -> Any:
        """A tf.data dataset of `Batch`, one for each local replica in turn, of steps [start_step, num_train_steps)."""
        num_local = self.topology.num_local_replicas
        elements = tf.data.Dataset.range(start_step * num_local, num_train_steps * num_local)
        dataset = elements.map(self._positions_and_weights).unbatch()
        dataset = dataset.batch(self.division.per_replica_batch_size, drop_remainder=True)
        dataset = dataset.map(self._read, num_parallel_calls=2, deterministic=True).unbatch()
        dataset = dataset.map(self._decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        dataset = dataset.batch(self.division.per_replica_batch_size, drop_remainder=True)
        return _with_threads(dataset.prefetch(2 * num_local), self.num_threads)

    def _positions_and_weights(self, element: Tensor) -> tuple[Tensor, Tensor]:
        """Stream positions [b] int64 of a replica's slice and their weights [b] float32, filled up to static b."""
        num_local = self.topology.num_local_replicas
        slices = np.array([self.division.slice_of(r) for r in range(self.topology.num_replicas)], np.int64)
        start, stop = tf.unstack(tf.gather(slices, element % num_local + self.topology.local_replicas.start), num=2)
        i = tf.range(self.division.per_replica_batch_size, dtype=tf.int64)
        first = element // num_local * self.division.global_batch_size + start
        # What fills up a slice repeats its own examples, so that batch statistics see real images.
        positions = first + i % (stop - start)
        is_real = tf.logical_and(i < stop - start, positions < self.num_positions)
        return positions, tf.cast(is_real, tf.float32)

    def _read(self, positions: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        examples, visits = self.order.draw(positions)
        encoded, labels, example_weights = records.parse_examples(_read_payloads(self.reader, examples))
        return encoded, labels, weights * example_weights, positions, examples, visits

    def _decode(
        self, encoded: Tensor, label: Tensor, weight: Tensor, position: Tensor, example: Tensor, visit: Tensor
    ) -> Batch:
        image = load_training_image(
            encoded, self.geometry, self.augmentation, seed=self.order.seed, visit=visit, example=example
        )
        return Batch(image, label, weight, position, tf.zeros([0]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationStream:
    """Every example of a split exactly once, in order; the last batch is filled up with weight zero."""

    reader: records.SplitReader
    geometry: Geometry
    per_replica_batch_size: int
    topology: Topology
    num_threads: int = 0

    @property
    def num_steps(self) -> int:
        return math.ceil(self.reader.num_examples / (self.per_replica_batch_size * self.topology.num_replicas))

    def dataset(self) -> Any:
        """A tf.data dataset of `Batch`, one for each local replica in turn."""
        num_local = self.topology.num_local_replicas
        elements = tf.data.Dataset.range(self.num_steps * num_local)
        dataset = elements.map(self._read, num_parallel_calls=2, deterministic=True).unbatch()
        dataset = dataset.map(self._decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        dataset = dataset.batch(self.per_replica_batch_size, drop_remainder=True)
        return _with_threads(dataset.prefetch(2 * num_local), self.num_threads)

    def _read(self, element: Tensor) -> tuple[Tensor, ...]:
        num_local = self.topology.num_local_replicas
        replica = element % num_local + self.topology.local_replicas.start
        batch = element // num_local * self.topology.num_replicas + replica
        positions = batch * self.per_replica_batch_size + tf.range(self.per_replica_batch_size, dtype=tf.int64)
        is_real = positions < self.reader.num_examples
        positions = tf.minimum(positions, self.reader.num_examples - 1)
        encoded, labels, _ = records.parse_examples(_read_payloads(self.reader, positions))
        return encoded, labels, tf.cast(is_real, tf.float32), positions

    def _decode(self, encoded: Tensor, label: Tensor, weight: Tensor, position: Tensor) -> Batch:
        return Batch(preprocess.load_image(encoded, self.geometry), label, weight, position, tf.zeros([0]))


def open_split(dataset_dir: pathlib.Path, split: SplitName) -> records.SplitReader:
    """Raises DataError where the dataset has no such split or a shard of it is missing or cut short."""
    return records.SplitReader(dataset_dir, Manifest.load(dataset_dir), split)


def _read_payloads(reader: records.SplitReader, examples: Tensor) -> Tensor:
    payloads = tf.numpy_function(lambda indices: np.array(reader.read(indices), object), [examples], tf.string)
    payloads.set_shape(examples.shape)
    return payloads


def _with_threads(dataset: Any, num_threads: int) -> Any:
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_threads
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
