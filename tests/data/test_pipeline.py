"""The same pixels for the same (seed, visit, example), wherever the batch is made and wherever the stream starts."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_sets import encode, photographs, write_dataset

from trainer.data.augmentation.presets import PRESETS
from trainer.data.augmentation.random_crop import RATIOS, load_training_image, random_window
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import EvaluationStream, TrainingStream, open_split
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology

pytestmark = pytest.mark.slow

SIZE = 32
GEOMETRY = Geometry(image_size_px=SIZE, resize="crop")
NUM_EXAMPLES, BATCH, NUM_STEPS = 11, 6, 4
# Just over two epochs: the last batch has two positions too many.
NUM_POSITIONS = 22
SINGLE = Topology(strategy="single", device="cpu", num_local_replicas=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    wide, tall = photographs(4, width=150, height=100), photographs(4, width=90, height=170, seed=1)
    encoded = [*map(encode, wide + tall), *(encode(image, "PNG") for image in wide[:3])]
    assert len(encoded) == NUM_EXAMPLES
    weights = [1.0 + i / 4 for i in range(NUM_EXAMPLES)]
    return write_dataset(tmp_path_factory.mktemp("datasets") / "photographs", encoded, weights=weights)


def training_stream(dataset: pathlib.Path, topology: Topology = SINGLE, **changes) -> TrainingStream:
    arguments = {
        "reader": open_split(dataset, "train"),
        "order": ExampleOrder(NUM_EXAMPLES, 3),
        "geometry": GEOMETRY,
        "augmentation": PRESETS["medium"],
        "division": BatchDivision(BATCH, topology.num_replicas),
        "topology": topology,
        "num_positions": NUM_POSITIONS,
    }
    return TrainingStream(**arguments | changes)


def rows(dataset) -> dict[int, tuple]:
    """Position to image, label, weight and random numbers, without what only fills up."""
    found = {}
    for batch in dataset.as_numpy_iterator():
        for image, label, weight, position, randomness in zip(*batch, strict=True):
            if weight > 0:
                assert int(position) not in found, "a position came twice"
                found[int(position)] = (image.tobytes(), int(label), float(weight), randomness.tobytes())
    return found


def topologies(num_workers: int) -> list[Topology]:
    strategy = "single" if num_workers == 1 else "horovod"
    return [
        Topology(strategy=strategy, device="cpu", num_local_replicas=1, num_workers=num_workers, worker_index=w)
        for w in range(num_workers)
    ]


def test_every_position_has_the_same_pixels_on_any_number_of_workers_and_replicas(dataset: pathlib.Path) -> None:
    alone = rows(training_stream(dataset).dataset(0, NUM_STEPS))
    assert sorted(alone) == list(range(NUM_POSITIONS))
    mirrored = Topology(strategy="mirrored", device="cpu", num_local_replicas=3)
    for setting in ([mirrored], topologies(3)):
        together: dict[int, tuple] = {}
        for topology in setting:
            part = rows(training_stream(dataset, topology).dataset(0, NUM_STEPS))
            assert not part.keys() & together.keys()
            together |= part
        assert together == alone


def test_four_workers_of_another_batch_size_see_the_same_pixels(dataset: pathlib.Path) -> None:
    """A batch of 8 in slices of 2: other neighbours, other threads, the same (seed, visit, example)."""
    alone = rows(training_stream(dataset).dataset(0, NUM_STEPS))
    together: dict[int, tuple] = {}
    for topology in topologies(4):
        together |= rows(training_stream(dataset, topology, division=BatchDivision(8, 4)).dataset(0, 3))
    assert together == alone


def test_a_start_at_any_step_gives_what_skipping_to_it_gives(dataset: pathlib.Path) -> None:
    stream = training_stream(dataset)
    whole = list(stream.dataset(0, NUM_STEPS).as_numpy_iterator())
    for start in range(1, NUM_STEPS):
        late = list(stream.dataset(start, NUM_STEPS).as_numpy_iterator())
        assert len(late) == NUM_STEPS - start
        for batch, expected in zip(late, whole[start:], strict=True):
            for values, right in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(values, right)


def test_two_visits_and_two_seeds_crop_an_image_differently(dataset: pathlib.Path) -> None:
    found = rows(training_stream(dataset).dataset(0, NUM_STEPS))
    other = rows(training_stream(dataset, order=ExampleOrder(NUM_EXAMPLES, 4)).dataset(0, NUM_STEPS))
    images = {row[0] for row in found.values()} | {row[0] for row in other.values()}
    assert len(images) == 2 * NUM_POSITIONS


def test_a_training_image_is_a_function_of_seed_visit_and_example_alone(dataset: pathlib.Path) -> None:
    stream = training_stream(dataset)
    batch = next(stream.dataset(2, 3).as_numpy_iterator())
    draws = stream.order.draw(tf.constant(batch.positions))
    assert set(draws.visits.numpy()) == {1}
    for image, visit, example in zip(batch.images, draws.visits, draws.examples, strict=True):
        encoded = tf.constant(encoded_of(stream.reader, int(example)))
        alone = load_training_image(
            encoded, GEOMETRY, stream.augmentation, seed=stream.order.seed, visit=visit, example=example
        )
        np.testing.assert_array_equal(image, alone.numpy())


def test_the_tail_is_masked_and_weights_of_examples_count_unless_they_decided_the_order(dataset: pathlib.Path) -> None:
    order = ExampleOrder(NUM_EXAMPLES, 3)
    positions = np.arange(NUM_STEPS * BATCH)
    is_real = positions < NUM_POSITIONS
    of_examples = 1.0 + order.draw(tf.constant(positions)).examples.numpy() / 4
    for weighs_loss, expected in ((True, is_real * of_examples), (False, is_real * 1.0)):
        batches = training_stream(dataset, weighs_loss=weighs_loss).dataset(0, NUM_STEPS).as_numpy_iterator()
        np.testing.assert_allclose(np.concatenate([batch.weights for batch in batches]), expected)


def test_evaluation_sees_the_pixels_of_load_image_bit_for_bit_and_each_example_once(dataset: pathlib.Path) -> None:
    reader = open_split(dataset, "validation")
    expected = [
        preprocess.load_image(tf.constant(encoded_of(reader, i)), GEOMETRY).numpy() for i in range(NUM_EXAMPLES)
    ]
    for replicas in (1, 3):
        topology = Topology(strategy="mirrored", device="cpu", num_local_replicas=replicas)
        stream = EvaluationStream(reader=reader, geometry=GEOMETRY, per_replica_batch_size=4, topology=topology)
        found = {}
        for batch in stream.dataset().as_numpy_iterator():
            is_real = batch.weights > 0
            for position, image in zip(batch.positions[is_real], batch.images[is_real], strict=True):
                assert int(position) not in found
                found[int(position)] = image
        assert sorted(found) == list(range(NUM_EXAMPLES))
        np.testing.assert_array_equal(np.stack([found[i] for i in range(NUM_EXAMPLES)]), np.stack(expected))


def test_without_random_crops_training_sees_what_evaluation_sees(dataset: pathlib.Path) -> None:
    reader = open_split(dataset, "train")
    stream = training_stream(dataset, augmentation=PRESETS["none"])
    batch = next(stream.dataset(0, 1).as_numpy_iterator())
    examples = stream.order.draw(tf.constant(batch.positions)).examples.numpy()
    for image, example in zip(batch.images, examples, strict=True):
        encoded = encoded_of(reader, int(example))
        np.testing.assert_array_equal(image, preprocess.load_image(tf.constant(encoded), GEOMETRY).numpy())


def encoded_of(reader, example: int) -> bytes:
    from trainer.data.dataset.records import Example

    return Example.from_payload(reader.read(np.array([example]))[0]).encoded


def test_the_pixels_of_this_version_of_preprocessing_are_these() -> None:
    """Old caches of decoded images stay in use until `preprocess.VERSION` is raised: do so where this fails."""
    y, x, c = np.meshgrid(np.arange(97), np.arange(131), np.arange(3), indexing="ij")
    image = tf.constant((y * 3 + x * 5 * (c + 1) + (x * y) % 31) % 256, tf.uint8)
    sums = []
    for resize in ("crop", "squash"):
        pixels = preprocess.resize_image(image, Geometry(image_size_px=40, resize=resize)).numpy().astype(np.int64)
        sums.append(int((pixels.ravel() * np.arange(1, pixels.size + 1)).sum()))
    assert (preprocess.VERSION, sums) == (1, [1461468254, 1449757145])


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("shape", [(7, 5), (40, 90), (600, 411)])
def test_an_even_image_stays_even_at_every_size(value: int, shape: tuple[int, int]) -> None:
    image = tf.fill([*shape, 3], tf.constant(value, tf.uint8))
    for size in (3, 32, 97):
        assert set(preprocess.resize_to_square(image, size).numpy().ravel()) == {value}


@settings(deadline=None, max_examples=150)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    key=st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)),
    min_area=st.floats(0.05, 0.99),
    target=st.integers(8, 400),
)
def test_a_crop_lies_inside_and_is_never_decoded_smaller_than_its_target(
    height: int, width: int, key: tuple[int, int], min_area: float, target: int
) -> None:
    window, index = random_window(
        tf.constant([height, width, 3]), tf.constant(key, tf.int64), min_area=min_area, target_px=target
    )
    top, left, crop_height, crop_width = window.numpy()
    ratio = RATIOS[int(index)]
    assert top >= 0 and left >= 0 and top + crop_height <= height and left + crop_width <= width
    assert crop_height >= 1 and crop_width >= 1
    assert all(edge % ratio == 0 for edge in window.numpy())
    if ratio > 1:
        assert min(crop_height, crop_width) // ratio >= target
    if ratio < max(RATIOS):
        assert min(crop_height, crop_width) < 2 * ratio * (target + 1)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (1600, 1200)])
def test_scaled_decoding_stays_close_to_the_full_picture_and_to_the_same_crop_of_a_png(width: int, height: int) -> None:
    geometry = Geometry(image_size_px=96, resize="crop")

    def load(encoded: bytes, visit: int, scaled: bool) -> np.ndarray:
        return load_training_image(
            tf.constant(encoded),
            geometry,
            PRESETS["medium"],
            seed=0,
            visit=tf.constant(visit, tf.int64),
            example=tf.constant(5, tf.int64),
            scaled_decoding=scaled,
        ).numpy()

    for visit, image in enumerate(photographs(4, width=width, height=height)):
        encoded = encode(image)
        exact = load(encoded, visit, False).astype(int)
        distance = {
            "scaled": np.abs(load(encoded, visit, True) - exact).mean(),
            "png": np.abs(load(encode(image, "PNG"), visit, False) - exact).mean(),
            "elsewhere": np.abs(load(encoded, visit + 10, False) - exact).mean(),
        }
        # The same crop, whichever path decodes it.
        assert distance["png"] < 2
        assert distance["scaled"] < min(5, distance["elsewhere"] / 2), distance


@pytest.mark.parametrize("preset", ["none", "medium"])
def test_a_broken_jpeg_is_an_error_and_no_picture(preset: str) -> None:
    encoded = encode(photographs(1, width=90, height=60)[0])
    with pytest.raises(tf.errors.InvalidArgumentError):
        load_training_image(
            tf.constant(encoded[:40]),
            GEOMETRY,
            PRESETS[preset],
            seed=0,
            visit=tf.constant(0, tf.int64),
            example=tf.constant(0, tf.int64),
        )
