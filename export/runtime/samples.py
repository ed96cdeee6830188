"""Read real images of a dataset to compare, calibrate and warm up artifacts with."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.records import Example
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.dataset.storage import DatasetPath
from trainer.data.decode.geometry import Geometry
from trainer.data.decode.preprocess import load_image
from trainer.errors import DataError

Pixels = npt.NDArray[np.uint8]
ClassIds = npt.NDArray[np.int64]


class ImageSource(Protocol):
    """Labelled, encoded images that can be read by index.

    Attributes:
        name: of the dataset.
        content_hash: SHA-256 of the dataset's content.
        split: of the dataset.
    """

    name: str
    content_hash: str
    split: str
    num_images: int

    def read(self, indices: npt.NDArray[np.int64]) -> tuple[list[bytes], ClassIds]:
        """Return the encoded images at `indices`, each in [0, num_images), and their classes.

        The classes are [n], or multi-hot [n, num_classes].
        """


class DatasetSplit:
    """One split of a prepared dataset as an `ImageSource`."""

    def __init__(self, dataset_dir: DatasetPath, manifest: Manifest, split: SplitName) -> None:
        """Open the split. Raises DataError if it or one of its files is missing."""
        self._reader = SplitReader(dataset_dir, manifest, split)
        self.name = manifest.name
        self.content_hash = manifest.content_hash()
        self.split: str = split
        self.num_images = self._reader.num_examples

    def read(self, indices: npt.NDArray[np.int64]) -> tuple[list[bytes], ClassIds]:
        examples = [Example.from_payload(payload) for payload in self._reader.read(indices)]
        num_classes = self._reader.num_multi_hot
        if num_classes is None:
            return [e.encoded for e in examples], np.array([e.label for e in examples], np.int64)
        multi_hot = np.zeros((len(examples), num_classes), np.int64)
        for row, example in zip(multi_hot, examples, strict=True):
            row[list(example.labels)] = 1
        return [e.encoded for e in examples], multi_hot


def open_split(dataset_dir: DatasetPath, split: SplitName, class_names: list[str]) -> DatasetSplit:
    """Open a split of a dataset whose classes must be `class_names`.

    Raises:
        DataError: no dataset, no such split or an empty one, or other classes.
    """
    manifest = Manifest.load(dataset_dir)
    if manifest.class_names != class_names:
        raise DataError(
            f"{dataset_dir} has other classes ({_abridge(manifest.class_names)}) than the model "
            f"({_abridge(class_names)}); give --data the dataset that the run was trained on"
        )
    source = DatasetSplit(dataset_dir, manifest, split)
    if source.num_images == 0:
        raise DataError(
            f"the {split} split of {dataset_dir} is empty; prepare the dataset with a larger {split} fraction"
        )
    return source


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        encoded: n files as bytes.
        images: [n, size, size, 3] uint8, the same images at the model's size.
        class_ids: [n], or multi-hot [n, num_classes] for multi-label.
    """

    encoded: list[bytes]
    images: Pixels
    class_ids: ClassIds


def spread_indices(num_images: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Return at most `limit` indices of [0, num_images), evenly spread, since a split may be sorted by class."""
    if limit is None or limit >= num_images:
        return np.arange(num_images, dtype=np.int64)
    return np.linspace(0, num_images - 1, limit).round().astype(np.int64)


def read_batch(source: ImageSource, indices: npt.NDArray[np.int64], geometry: Geometry) -> Batch:
    """Read and decode the images at `indices`."""
    encoded, class_ids = source.read(indices)
    return Batch(encoded, load_images(encoded, geometry), class_ids)


def iterate_batches(
    source: ImageSource, indices: npt.NDArray[np.int64], geometry: Geometry, batch_size: int
) -> Iterator[Batch]:
    """Yield the images at `indices` in order; the last batch may be smaller."""
    for start in range(0, len(indices), batch_size):
        yield read_batch(source, indices[start : start + batch_size], geometry)


def load_images(encoded: list[bytes], geometry: Geometry) -> Pixels:
    """Decode and resize as in training, to [n, size, size, 3] uint8.

    Raises:
        tf.errors.InvalidArgumentError: one of them is not an image that `preprocess.decode_image` reads.
    """
    images: Pixels = _loader(geometry)(tf.constant(encoded, tf.string, [len(encoded)])).numpy()
    return images


def _abridge(class_names: list[str]) -> str:
    return ", ".join(class_names[:3]) + (f" and {len(class_names) - 3} more" if len(class_names) > 3 else "")


@functools.lru_cache(maxsize=8)
def _loader(geometry: Geometry) -> Any:
    size = geometry.image_size_px

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def load(encoded: Any) -> Any:
        return tf.map_fn(
            lambda one: load_image(one, geometry),
            encoded,
            fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
        )

    return load
