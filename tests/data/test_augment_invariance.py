"""What the model sees of an example depends on (seed, visit, example) and its partner alone, not on who computes it."""

import collections
import io
import pathlib
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

from trainer.config.data import AugmentConfig
from trainer.data.augmentation.changes import draw_randomness, num_columns, unpack
from trainer.data.augmentation.on_device import augment_batch, change_images
from trainer.data.augmentation.presets import PRESETS, Augmentation, resolve_augmentation
from trainer.data.dataset.manifest import Manifest, Split
from trainer.data.dataset.records import Example, ShardWriter
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import TrainingStream, open_split
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology
from trainer.system import atomic

pytestmark = pytest.mark.slow

NUM_EXAMPLES = 23
NUM_CLASSES = 4
IMAGE_SIZE_PX = 32
SEED = 11
EVERYTHING = resolve_augmentation(
    AugmentConfig(preset="strong", color_jitter=0.3, erasing=0.25, rotation_degrees=20.0, shift=0.1, zoom=0.2)
)


class Row(NamedTuple):
    """What the training step makes of one position."""

    host_pixels: np.ndarray
    weight: float
    randomness: np.ndarray
    pixels: np.ndarray
    target: np.ndarray


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Parts of two photographs, as JPEGs of different sizes."""
    path = tmp_path_factory.mktemp("photographs") / "dataset"
    photographs = load_sample_images().images
    with atomic.new_directory(path) as directory:
        with ShardWriter(directory, "train-00000-of-00001") as writer:
            for i in range(NUM_EXAMPLES):
                top, left, height, width = 10 * i, 15 * i, 90 + 3 * i, 120 - 2 * i
                content = io.BytesIO()
                part = photographs[i % 2][top : top + height, left : left + width]
                PIL.Image.fromarray(part).save(content, "JPEG")
                writer.write(
                    Example(
                        encoded=content.getvalue(),
                        labels=(i % NUM_CLASSES,),
                        format="jpeg",
                        filename=f"{i}.jpg",
                        height=part.shape[0],
                        width=part.shape[1],
                    )
                )
        counts = np.bincount(np.arange(NUM_EXAMPLES) % NUM_CLASSES).tolist()
        split = Split(num_examples=NUM_EXAMPLES, class_counts=counts, shards=[writer.shard])
        names = [f"class {i}" for i in range(NUM_CLASSES)]
        Manifest(name="parts", source="photographs", class_names=names, seed=0, splits={"train": split}).save(directory)
    return path


def rows_of_run(
    dataset_dir: pathlib.Path,
    augmentation: Augmentation,
    *,
    num_workers: int,
    global_batch_size: int,
    num_steps: int = 5,
    num_positions: int = 10**6,
    jit_compile: bool = False,
    first_step: int = 0,
) -> dict[int, Row]:
    """By position, over all workers; what only fills up a slice is left out."""
    augment = tf.function(
        lambda images, targets, randomness, positions: augment_batch(
            augmentation, images, targets, randomness, positions
        ),
        jit_compile=jit_compile,
    )
    division = BatchDivision(global_batch_size, num_workers)
    rows = {}
    for worker in range(num_workers):
        start, stop = division.slice_of(worker)
        stream = TrainingStream(
            reader=open_split(dataset_dir, "train"),
            order=ExampleOrder(NUM_EXAMPLES, SEED),
            geometry=Geometry(image_size_px=IMAGE_SIZE_PX, resize="crop"),
            augmentation=augmentation,
            division=division,
            topology=Topology(
                strategy="horovod", device="cpu", num_local_replicas=1, num_workers=num_workers, worker_index=worker
            ),
            num_positions=num_positions,
        )
        for batch in stream.dataset(first_step, num_steps):
            targets = tf.one_hot(batch.labels, NUM_CLASSES)
            pixels, mixed = augment(batch.images, targets, batch.randomness, batch.positions)
            columns = (batch.images, batch.weights, batch.randomness, pixels, mixed)
            for i, position in enumerate(batch.positions.numpy()[: stop - start].tolist()):
                rows[position] = Row(*(column[i].numpy() for column in columns))
    return rows


def assert_the_same(rows: dict[int, Row], reference: dict[int, Row]) -> None:
    assert sorted(rows) == sorted(reference)
    for position, expected in reference.items():
        row = rows[position]
        np.testing.assert_array_equal(row.host_pixels, expected.host_pixels)
        np.testing.assert_array_equal(row.randomness, expected.randomness)
        assert row.weight == expected.weight
        np.testing.assert_allclose(row.pixels, expected.pixels, atol=1e-5)
        np.testing.assert_allclose(row.target, expected.target, atol=1e-5)


@pytest.mark.parametrize(("preset", "global_batch_size"), [("medium", 12), ("strong", 12), ("everything", 9)])
def test_pixels_and_targets_are_the_same_on_any_number_of_workers(
    dataset_dir: pathlib.Path, preset: str, global_batch_size: int
) -> None:
    one, three, four = (
        rows_of_run(
            dataset_dir,
            EVERYTHING if preset == "everything" else PRESETS[preset],
            num_workers=num_workers,
            global_batch_size=global_batch_size,
            num_steps=4,
            # The last batch goes beyond the end of the run.
            num_positions=4 * global_batch_size - 4,
        )
        for num_workers in (1, 3, 4)
    )
    assert [row.weight for _, row in sorted(one.items())][-5:] == [1, 0, 0, 0, 0]
    assert_the_same(three, one)
    assert_the_same(four, one)


def test_xla_changes_nothing(dataset_dir: pathlib.Path) -> None:
    options = {"global_batch_size": 12, "num_steps": 2}
    reference = rows_of_run(dataset_dir, EVERYTHING, num_workers=1, **options)
    assert_the_same(rows_of_run(dataset_dir, EVERYTHING, num_workers=3, jit_compile=True, **options), reference)


def test_a_run_that_starts_anywhere_sees_the_same(dataset_dir: pathlib.Path) -> None:
    whole = rows_of_run(dataset_dir, PRESETS["strong"], num_workers=1, global_batch_size=10)
    rest = rows_of_run(dataset_dir, PRESETS["strong"], num_workers=3, global_batch_size=10, first_step=3)
    assert_the_same(rest, {position: row for position, row in whole.items() if position >= 30})


def test_partners_are_neighbours_of_the_global_batch(dataset_dir: pathlib.Path) -> None:
    augmentation = resolve_augmentation(AugmentConfig(mixup_alpha=1.0))
    rows = rows_of_run(dataset_dir, augmentation, num_workers=3, global_batch_size=9, num_steps=4)
    order = ExampleOrder(NUM_EXAMPLES, SEED)
    labels = order.draw(np.arange(36)).examples.numpy() % NUM_CLASSES
    for position, row in rows.items():
        offset = position % 9
        partner = position if offset == 8 else position - offset + (offset ^ 1)
        assert set(np.flatnonzero(row.target)) <= {labels[position], labels[partner]}
        if labels[position] != labels[partner]:
            assert row.target[labels[position]] >= 0.5, "the larger part of a mixup is the image itself"
        own, other = rows[position].host_pixels.astype(float), rows[partner].host_pixels.astype(float)
        share = row.target[labels[position]] if labels[position] != labels[partner] else None
        if share is not None:
            np.testing.assert_allclose(row.pixels, share * own + (1 - share) * other, atol=1e-3)


@pytest.mark.parametrize("preset", ["none", "light", "medium", "strong"])
def test_pixels_stay_in_range_and_only_what_the_preset_says_is_changed(dataset_dir: pathlib.Path, preset: str) -> None:
    augmentation = PRESETS[preset]
    rows = rows_of_run(dataset_dir, augmentation, num_workers=1, global_batch_size=23, num_steps=2)
    for row in rows.values():
        assert row.pixels.dtype == np.float32 and row.host_pixels.dtype == np.uint8
        assert row.pixels.min() >= 0 and row.pixels.max() <= 255
        assert row.target.sum() == pytest.approx(1, abs=1e-6)
        assert len(row.randomness) == sum(num_columns(augmentation).values())
    changed_on_device = np.mean([not np.array_equal(row.pixels, row.host_pixels) for row in rows.values()])
    mixed = np.mean([row.target.max() < 1 for row in rows.values()])
    examples = ExampleOrder(NUM_EXAMPLES, SEED).draw(np.arange(46)).examples.numpy()
    by_example = collections.defaultdict(list)
    for position, row in rows.items():
        by_example[examples[position]].append(row.host_pixels)
    cropped_anew = np.mean([not np.array_equal(first, second) for first, second in by_example.values()])
    assert changed_on_device == 0 if preset in ("none", "light") else changed_on_device > 0.9
    assert mixed == 0 if preset != "strong" else mixed > 0.5
    assert cropped_anew == 0 if preset == "none" else cropped_anew > 0.9


def draw(augmentation: Augmentation, num: int, *, seed: int = SEED, visit: int = 0) -> np.ndarray:
    examples = np.arange(num, dtype=np.int64)
    visits = np.full([num], visit, np.int64)
    return draw_randomness(
        augmentation, seed=seed, visits=visits, examples=examples, image_size_px=IMAGE_SIZE_PX
    ).numpy()


def test_half_of_the_images_are_mirrored_and_their_pixels_are_the_mirrored_ones() -> None:
    augmentation = resolve_augmentation(AugmentConfig(flip=True))
    randomness = draw(augmentation, 2000)
    assert set(np.unique(randomness)) == {0.0, 1.0}
    assert randomness.mean() == pytest.approx(0.5, abs=0.04)
    images = np.random.default_rng(0).integers(0, 256, [20, 8, 8, 3], dtype=np.uint8)
    changed = change_images(tf.constant(images), unpack(augmentation, tf.constant(randomness[:20]))).numpy()
    for image, is_mirrored, result in zip(images, randomness[:20, 0], changed, strict=True):
        np.testing.assert_array_equal(result, image[:, ::-1] if is_mirrored else image)


def test_the_strength_of_color_jitter_bounds_its_factors() -> None:
    factors = draw(resolve_augmentation(AugmentConfig(color_jitter=0.4)), 3000)
    assert factors.shape == (3000, 3)
    np.testing.assert_allclose(factors.min(axis=0), 0.6, atol=0.01)
    np.testing.assert_allclose(factors.max(axis=0), 1.4, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(factors.T), np.eye(3), atol=0.06)


@pytest.mark.parametrize(
    ("setting", "column", "expected"),
    [
        ({"rotation_degrees": 30.0}, 3, np.sin(np.radians(30))),
        ({"shift": 0.25}, 2, 0.25 * IMAGE_SIZE_PX),
        ({"shift": 0.25}, 5, 0.25 * IMAGE_SIZE_PX),
        ({"zoom": 0.2}, 0, 0.2),
    ],
)
def test_the_strength_of_a_warp_bounds_it_either_way(setting: dict[str, float], column: int, expected: float) -> None:
    drawn = draw(resolve_augmentation(AugmentConfig(**setting)), 3000)
    strengths = drawn[:, column] - (column == 0)
    np.testing.assert_allclose([strengths.min(), strengths.max()], [-expected, expected], rtol=0.02)
    assert strengths.mean() == pytest.approx(0, abs=0.05 * expected)
    np.testing.assert_array_equal(drawn * 2**12, np.round(drawn * 2**12))


def test_an_image_is_turned_zoomed_and_moved_about_its_centre_as_its_matrix_says() -> None:
    settings = AugmentConfig(rotation_degrees=180.0, shift=0.5, zoom=0.5)
    matrices = draw(resolve_augmentation(settings), 6).reshape(-1, 2, 3)
    images = np.asarray(
        [PIL.Image.fromarray(image).resize((IMAGE_SIZE_PX,) * 2) for image in load_sample_images().images * 3]
    )
    flat = tf.constant(matrices.reshape(-1, 6))
    changed = change_images(tf.constant(images), unpack(resolve_augmentation(settings), flat)).numpy()
    for image, matrix, result in zip(images, matrices, changed, strict=True):
        # Pillow's pixels have their centre at one half, and its matrices are from the corner.
        centre = IMAGE_SIZE_PX / 2
        moved = matrix[:, :2] @ [-centre, -centre] + matrix[:, 2] + centre
        data = (*matrix[0, :2], moved[0], *matrix[1, :2], moved[1])
        expected = PIL.Image.fromarray(image).transform(
            image.shape[:2], PIL.Image.Transform.AFFINE, data, PIL.Image.Resampling.BILINEAR, fillcolor=(128,) * 3
        )
        # A point on the very border of the image may be in it for one of the two.
        assert np.mean(np.abs(result - np.asarray(expected)) > 4) < 0.005


def test_erased_rectangles_are_as_frequent_and_as_large_as_the_paper_says() -> None:
    size = 64
    randomness = draw_randomness(
        resolve_augmentation(AugmentConfig(erasing=0.25)),
        seed=SEED,
        visits=np.zeros([4000], np.int64),
        examples=np.arange(4000),
        image_size_px=size,
    ).numpy()
    top, left, bottom, right, *_ = randomness.T
    is_erased = bottom > top
    assert is_erased.mean() == pytest.approx(0.25, abs=0.03)
    share = ((bottom - top) * (right - left))[is_erased] / size**2
    assert share.min() > 0.015 and share.max() < 0.36
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert min(top.min(), left.min()) >= 0 and max(bottom.max(), right.max()) <= size
    aspect = ((bottom - top) / (right - left))[is_erased]
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.15)
    np.testing.assert_array_equal(randomness, np.round(randomness))


def test_an_erased_rectangle_gets_its_colour_and_the_rest_stays() -> None:
    augmentation = resolve_augmentation(AugmentConfig(erasing=1.0))
    randomness = draw(augmentation, 10)
    images = np.random.default_rng(0).integers(0, 256, [10, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3], dtype=np.uint8)
    changed = change_images(tf.constant(images), unpack(augmentation, tf.constant(randomness))).numpy()
    for image, row, result in zip(images, randomness, changed, strict=True):
        top, left, bottom, right = row[:4].astype(int)
        expected = image.copy()
        expected[top:bottom, left:right] = row[4:]
        np.testing.assert_array_equal(result, expected)


def test_randomness_differs_by_seed_visit_and_example_and_by_nothing_else() -> None:
    drawn = draw(EVERYTHING, 300)
    np.testing.assert_array_equal(draw(EVERYTHING, 300), drawn)
    np.testing.assert_array_equal(draw(EVERYTHING, 50), drawn[:50])
    for other in (draw(EVERYTHING, 300, seed=SEED + 1), draw(EVERYTHING, 300, visit=1)):
        assert (other != drawn).any(axis=1).all()
    assert len(np.unique(drawn, axis=0)) == 300


def test_what_one_setting_draws_does_not_depend_on_the_others() -> None:
    all_on = resolve_augmentation(AugmentConfig(preset="strong", color_jitter=0.2, erasing=0.25))
    expected = unpack(all_on, tf.constant(draw(all_on, 40)))
    for name, config in (
        ("flip", AugmentConfig(flip=True)),
        ("jitter", AugmentConfig(color_jitter=0.2)),
        ("erasing", AugmentConfig(erasing=0.25)),
        ("mixing", AugmentConfig(mixup_alpha=0.1, cutmix_alpha=1.0)),
    ):
        alone = resolve_augmentation(config)
        changes = unpack(alone, tf.constant(draw(alone, 40)))
        np.testing.assert_array_equal(getattr(changes, name), getattr(expected, name))


def test_the_warps_of_both_kinds_come_to_one_that_does_the_classic_one_first() -> None:
    classic = AugmentConfig(rotation_degrees=20.0, shift=0.1, zoom=0.2)
    ours, theirs, both = (
        unpack(augmentation, tf.constant(draw(augmentation, 40))).warp.numpy().reshape(-1, 2, 3)
        for augmentation in map(
            resolve_augmentation,
            (
                classic,
                AugmentConfig(preset="strong"),
                classic.model_copy(update={"preset": "strong"}),
            ),
        )
    )
    linear = ours[:, :, :2] @ theirs[:, :, :2]
    offset = ours[:, :, :2] @ theirs[:, :, 2:] + ours[:, :, 2:]
    np.testing.assert_allclose(both, np.concatenate([linear, offset], axis=2), atol=2**-12)


def test_an_image_comes_out_the_same_in_any_batch() -> None:
    strong = PRESETS["strong"]
    images = np.random.default_rng(0).integers(0, 256, [12, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3], dtype=np.uint8)
    randomness = draw(strong, 12)
    whole = change_images(tf.constant(images), unpack(strong, tf.constant(randomness))).numpy()
    for rows in ([3], [0, 5, 7], [11, 10, 9, 8]):
        part = change_images(tf.constant(images[rows]), unpack(strong, tf.constant(randomness[rows]))).numpy()
        np.testing.assert_array_equal(part, whole[rows])
