"""Every reader of records, in Python and in tf.data, refuses a damaged one with the same sentence."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pixel_sets import encode, photographs, write_dataset

from export.runtime.samples import open_split as open_samples
from trainer.config.config import load_config
from trainer.data.augmentation.presets import PRESETS
from trainer.data.dataset.example_columns import read_columns
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.decode.geometry import Geometry
from trainer.data.input import input_benchmark
from trainer.data.input.pipeline import EvaluationStream, Resources, TrainingStream
from trainer.data.input.pixel_cache import decode_split
from trainer.data.input.read_errors import as_data_errors
from trainer.data.preview.preview import load_preview
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.mirrored import make_engine
from trainer.distribute.topology import BatchDivision, Topology
from trainer.errors import DataError
from trainer.evaluation.evaluator import Evaluator
from trainer.features.views import ViewStream
from trainer.training.bad_batch import save_bad_batch

pytestmark = pytest.mark.slow

NUM_EXAMPLES, SIZE = 8, 32
GEOMETRY = Geometry(image_size_px=SIZE, resize="crop")
SINGLE = Topology(strategy="single", device="cpu", num_local_replicas=1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Eight photographs; example 5 of both splits has a flipped bit."""
    encoded = [encode(image, "PNG") for image in photographs(NUM_EXAMPLES, width=40, height=40)]
    directory = write_dataset(tmp_path_factory.mktemp("datasets") / "damaged", encoded)
    for split in ("train", "validation"):
        with SplitReader(directory, Manifest.load(directory), split) as reader, reader.paths[0].open("r+b") as f:
            f.seek(int(reader.locate(np.array([5])).offsets[0]) + 1000)
            (byte,) = f.read(1)
            f.seek(-1, 1)
            f.write(bytes([byte ^ 1]))
    return directory


def training_stream(reader: SplitReader) -> TrainingStream:
    return TrainingStream(
        reader=reader,
        order=ExampleOrder(NUM_EXAMPLES, 0),
        geometry=GEOMETRY,
        augmentation=PRESETS["none"],
        division=BatchDivision(4, 1),
        topology=SINGLE,
        num_positions=NUM_EXAMPLES,
    )


def train(reader: SplitReader) -> None:
    with as_data_errors():
        list(training_stream(reader).dataset(0, 2))


def train_in_a_compiled_loop(reader: SplitReader) -> None:
    import tensorflow as tf

    @tf.function
    def take(batches: Any) -> None:
        for _ in tf.range(2):
            next(batches)

    with as_data_errors():
        take(iter(training_stream(reader).dataset(0, 2)))


def evaluate(reader: SplitReader) -> None:
    import keras

    model = keras.Sequential([keras.Input([SIZE, SIZE, 3]), keras.layers.Flatten(), keras.layers.Dense(2)])
    stream = EvaluationStream(reader=reader, geometry=GEOMETRY, per_replica_batch_size=4, topology=SINGLE)
    Evaluator(make_engine(SINGLE), model, stream, jit_compile=False).run()


def extract_views(reader: SplitReader) -> None:
    stream = ViewStream(
        reader=reader,
        geometry=GEOMETRY,
        per_replica_batch_size=4,
        topology=SINGLE,
        num_views=2,
        seed=0,
        augmentation=PRESETS["medium"],
        scaled_decoding=True,
        resources=Resources(),
    )
    with as_data_errors():
        list(stream.dataset())


def preview(reader: SplitReader) -> None:
    load_preview(reader.paths[0].parent, config=load_config(), image_size_px=SIZE, num_images=8, num_visits=1)


READERS: dict[str, Callable[[SplitReader], object]] = {
    "training": train,
    "training, many steps in a call": train_in_a_compiled_loop,
    "evaluation": evaluate,
    "features of views": extract_views,
    "cache": lambda reader: list(decode_split(reader.paths[0].parent, "train", GEOMETRY)),
    "preview": preview,
    "slices": lambda reader: read_columns(reader, ["folder"], None),
    "samples of an export": lambda reader: open_samples(reader.paths[0].parent, "train", ["even", "odd"]).read(
        np.arange(NUM_EXAMPLES)
    ),
    "input benchmark": lambda reader: input_benchmark._rate(training_stream(reader).dataset(0, 100), 4, secs=1.0),
    "bad batch": lambda reader: [
        save_bad_batch(reader.paths[0].parent / "batch.npz", training_stream(reader), step=step) for step in (1, 2)
    ],
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_record_is_one_sentence_in_every_reader(directory: pathlib.Path, name: str) -> None:
    with SplitReader(directory, Manifest.load(directory), "train") as reader:
        begin = int(reader.locate(np.array([5])).offsets[0]) - 12
        sentence = f"the shard {reader.paths[0]} is damaged: record 5 at byte {begin} fails its CRC-32C; copy the shard"
        with pytest.raises(DataError) as raised:
            READERS[name](reader)
    assert str(raised.value).startswith(sentence)
    assert "Traceback" not in str(raised.value)
