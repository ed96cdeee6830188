"""Scikit-learn's real digits as encoded images and as a prepared dataset, and a small classifier of them."""

import io
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import sklearn.datasets

from export.files.signature import Signature
from export.runtime.samples import ClassIds
from trainer.data.dataset.manifest import Manifest, Split, SplitName
from trainer.data.dataset.records import Example, ShardWriter
from trainer.data.decode.geometry import Geometry

SIZE_PX = 24
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
GEOMETRY = Geometry(image_size_px=SIZE_PX, resize="crop")
SIGNATURE = Signature.of_classifier(model_name="digits", class_names=CLASS_NAMES, geometry=GEOMETRY)
# Wider than high, so that a crop and a squash differ.
WIDTH_PX, HEIGHT_PX = 40, 30
_RANGES: dict[SplitName, range] = {"train": range(1200), "validation": range(1200, 1500), "test": range(1500, 1797)}


class ListedImages:
    """Encoded images in memory as an `ImageSource`."""

    name = "digits"
    content_hash = "0" * 64

    def __init__(self, split: str, encoded: list[bytes], class_ids: ClassIds) -> None:
        self.split = split
        self.num_images = len(encoded)
        self._encoded, self._class_ids = encoded, class_ids

    def read(self, indices: npt.NDArray[np.int64]) -> tuple[list[bytes], ClassIds]:
        return [self._encoded[i] for i in indices], self._class_ids[indices]


def read_digits(split: SplitName) -> ListedImages:
    """One split of the digits, each a PNG of WIDTH_PX x HEIGHT_PX."""
    data = sklearn.datasets.load_digits()
    rows = _RANGES[split]
    encoded = [_png(data.images[i]) for i in rows]
    return ListedImages(split, encoded, data.target[list(rows)].astype(np.int64))


def write_dataset(dataset_dir: pathlib.Path) -> Manifest:
    """The digits as `trainer prepare` lays a dataset out."""
    dataset_dir.mkdir()
    splits: dict[SplitName, Split] = {}
    for split in _RANGES:
        source = read_digits(split)
        encoded, class_ids = source.read(np.arange(source.num_images))
        with ShardWriter(dataset_dir, f"{split}-00000-of-00001") as writer:
            for i, (content, class_id) in enumerate(zip(encoded, class_ids, strict=True)):
                example = Example(
                    encoded=content,
                    labels=(int(class_id),),
                    format="png",
                    filename=f"{i}.png",
                    height=HEIGHT_PX,
                    width=WIDTH_PX,
                )
                writer.write(example)
        counts = np.bincount(class_ids, minlength=len(CLASS_NAMES)).tolist()
        splits[split] = Split(num_examples=source.num_images, class_counts=counts, shards=[writer.shard])
    manifest = Manifest(name="digits", source="digits", class_names=CLASS_NAMES, seed=0, splits=splits)
    manifest.save(dataset_dir)
    return manifest


def build_model() -> Any:
    """A small convolutional classifier with seeded random weights: pixels 0 to 255 to logits."""
    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    images = keras.Input((SIZE_PX, SIZE_PX, 3), name="images")
    x = layers.Rescaling(1 / 127.5, -1.0, name="scale")(images)
    for i, filters in enumerate((12, 24)):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"bn{i}")(x)
        x = layers.ReLU(6.0, name=f"relu{i}")(x)
    x = layers.Dropout(0.1, name="dropout")(layers.Flatten(name="flatten")(x))
    return keras.Model(images, layers.Dense(len(CLASS_NAMES), name="head", dtype="float32")(x), name="digits")


def train_model() -> Any:
    """`build_model` after a few epochs on the training split: right on about 95 of 100."""
    import keras

    from export.runtime.samples import read_batch

    model = build_model()
    source = read_digits("train")
    batch = read_batch(source, np.arange(source.num_images), GEOMETRY)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(batch.images.astype(np.float32), batch.class_ids, batch_size=32, epochs=6, verbose=0)
    return model


def copy_of(model: Any, dtype_policy: str = "float32") -> Any:
    """A model of its own with the same weights, to be damaged or to compute in another precision."""
    import keras

    keras.config.set_dtype_policy(dtype_policy)
    try:
        copied = build_model()
    finally:
        keras.config.set_dtype_policy("float32")
    copied.set_weights(model.get_weights())
    return copied


def _png(digit: npt.NDArray[np.float64]) -> bytes:
    image = PIL.Image.fromarray((digit / digit.max() * 255).astype(np.uint8)).convert("RGB")
    content = io.BytesIO()
    image.resize((WIDTH_PX, HEIGHT_PX), PIL.Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()
