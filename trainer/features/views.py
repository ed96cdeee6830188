"""The input of features with augmentation: the first views of every training image, as training would see them."""

import dataclasses
import math
from typing import Any

import tensorflow as tf

from trainer.data.augmentation.changes import draw_randomness
from trainer.data.augmentation.on_device import augment_batch
from trainer.data.augmentation.presets import Augmentation
from trainer.data.augmentation.random_crop import load_training_image
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.decode.geometry import Geometry
from trainer.data.input.batch import Batch
from trainer.data.input.pipeline import Draw, Resources, as_is, decoded_batches
from trainer.distribute.topology import Topology

Tensor = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewStream:
    """The views of all training examples, each once; row `example * num_views + view` is visit `view` of an example."""

    reader: SplitReader
    geometry: Geometry
    per_replica_batch_size: int
    topology: Topology
    num_views: int
    seed: int
    augmentation: Augmentation
    scaled_decoding: bool
    resources: Resources

    @property
    def num_rows(self) -> int:
        return self.reader.num_examples * self.num_views

    @property
    def num_steps(self) -> int:
        return math.ceil(self.num_rows / (self.per_replica_batch_size * self.topology.num_replicas))

    def dataset(self) -> Any:
        """Return a tf.data dataset of `Batch` with float32 pixels from 0 to 255, one for each local replica in turn."""
        num_local = self.topology.num_local_replicas
        draws = tf.data.Dataset.range(self.num_steps * num_local).map(as_is(self.draw))
        batches = decoded_batches(draws, self.reader, self.decode, self.resources)
        batches = batches.map(as_is(self._change), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return self.resources.apply(batches.prefetch(2 * num_local))

    def draw(self, element: Tensor) -> Draw:
        """Return the examples of element `element`, an int64 scalar."""
        num_local = self.topology.num_local_replicas
        replica = element % num_local + self.topology.local_replicas.start
        batch = element // num_local * self.topology.num_replicas + replica
        rows = batch * self.per_replica_batch_size + tf.range(self.per_replica_batch_size, dtype=tf.int64)
        is_real = rows < self.num_rows
        rows = tf.minimum(rows, self.num_rows - 1)
        examples, views = rows // self.num_views, rows % self.num_views
        randomness = draw_randomness(
            self.augmentation,
            seed=self.seed,
            visits=views,
            examples=examples,
            image_size_px=self.geometry.image_size_px,
        )
        return Draw(examples, views, tf.cast(is_real, tf.float32), rows, randomness)

    def _change(self, batch: Batch, _: Tensor) -> Batch:
        # The same changes as in a training step; their arithmetic is exact on any device.
        targets = tf.zeros([self.per_replica_batch_size, 1])
        images, _ = augment_batch(self.augmentation, batch.images, targets, batch.randomness, batch.positions)
        return batch._replace(images=images, randomness=batch.randomness[:, :0])

    def decode(self, encoded: Tensor, draw: Draw) -> Tensor:
        """Decode encoded bytes to pixels [size, size, 3] uint8, cropped as their row of a `Draw` says."""
        return load_training_image(
            encoded,
            self.geometry,
            self.augmentation,
            seed=self.seed,
            visit=draw.visits,
            example=draw.examples,
            scaled_decoding=self.scaled_decoding,
        )
