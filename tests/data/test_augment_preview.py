"""The contact sheet shows the very pixels that a run with the same configuration trains on."""

import pathlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from trainer.config.config import Config, load_config
from trainer.data.augmentation.on_device import augment_batch
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.dataset.manifest import Manifest, Split
from trainer.data.dataset.records import Example, ShardWriter
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import TrainingStream, open_split
from trainer.data.preview.contact_sheet import draw_sheet
from trainer.data.preview.preview import load_preview, write_preview
from trainer.data.preview.seen_image import SeenImage, SeenRow
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology
from trainer.errors import DataError
from trainer.system import atomic

pytestmark = pytest.mark.slow

NUM_EXAMPLES = 31
CLASS_NAMES = [f"digit {i}" for i in range(10)]
SIZE_PX = 24


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("digits") / "dataset"
    pixels, labels = load_digits(return_X_y=True)
    with atomic.new_directory(path) as directory:
        with ShardWriter(directory, "train-00000-of-00001") as writer:
            for i in range(NUM_EXAMPLES):
                grey = np.round(pixels[i].reshape(8, 8) / 16 * 255).astype(np.uint8)
                content = tf.io.encode_png(grey[..., np.newaxis]).numpy()
                # The last examples weigh twice as much as the others.
                weight = 2.0 if i >= 21 else 1.0
                writer.write(
                    Example(
                        encoded=content,
                        labels=(int(labels[i]),),
                        format="png",
                        filename=f"{i}.png",
                        height=8,
                        width=8,
                        weight=weight,
                    )
                )
        counts = np.bincount(labels[:NUM_EXAMPLES], minlength=10).tolist()
        split = Split(num_examples=NUM_EXAMPLES, class_counts=counts, shards=[writer.shard])
        Manifest(name="digits", source="digits", class_names=CLASS_NAMES, seed=0, splits={"train": split}).save(
            directory
        )
    return path


def make_config(preset: str, *overrides: str, batch_size: int = 8) -> Config:
    return load_config(
        overrides=[
            f"augment.preset={preset}",
            f"model.image_size_px={SIZE_PX}",
            f"train.global_batch_size={batch_size}",
            "train.seed=4",
            *overrides,
        ]
    )


def trained_pixels(dataset_dir: pathlib.Path, config: Config, num_steps: int) -> dict[int, list[np.ndarray]]:
    """By example, what the training step makes of it, visit after visit."""
    augmentation, batch_size = resolve_augmentation(config.augment), config.train.global_batch_size
    order = ExampleOrder(NUM_EXAMPLES, config.train.seed)
    stream = TrainingStream(
        reader=open_split(dataset_dir, "train"),
        order=order,
        geometry=Geometry(image_size_px=SIZE_PX, resize="crop"),
        augmentation=augmentation,
        division=BatchDivision(batch_size, 1),
        topology=Topology(strategy="single", device="cpu", num_local_replicas=1),
        num_positions=10**6,
    )
    seen: dict[int, list[np.ndarray]] = {example: [] for example in range(NUM_EXAMPLES)}
    for batch in stream.dataset(0, num_steps):
        targets = tf.zeros([batch_size, 1])
        pixels, _ = augment_batch(augmentation, batch.images, targets, batch.randomness, batch.positions)
        for example, image in zip(order.draw(batch.positions).examples.numpy().tolist(), pixels.numpy(), strict=True):
            seen[example].append(np.round(image).astype(np.uint8))
    return seen


@pytest.mark.parametrize("batch_size", [8, 9])
@pytest.mark.parametrize("preset", ["light", "medium", "strong"])
def test_each_row_holds_the_pixels_that_the_first_visits_of_one_image_have_in_training(
    dataset_dir: pathlib.Path, preset: str, batch_size: int
) -> None:
    config = make_config(preset, batch_size=batch_size)
    rows = load_preview(dataset_dir, config=config, num_images=10, num_visits=3)
    trained = trained_pixels(dataset_dir, config, num_steps=4 * NUM_EXAMPLES // batch_size)
    assert len({row.evaluation.parts[0][0] for row in rows}) == 10, "a row for each class"
    for row in rows:
        matches = [
            example
            for example, visits in trained.items()
            if all(np.array_equal(a.pixels, b) for a, b in zip(row.visits, visits[:3], strict=True))
        ]
        assert len(matches) == 1, "no image of this dataset is trained on with these pixels"


def test_the_first_column_is_the_image_as_evaluation_decodes_it(dataset_dir: pathlib.Path) -> None:
    rows = load_preview(dataset_dir, config=make_config("strong"), num_images=4, num_visits=2)
    with open_split(dataset_dir, "train") as reader:
        examples = [Example.from_payload(payload) for payload in reader.read(np.arange(NUM_EXAMPLES))]
    geometry = Geometry(image_size_px=SIZE_PX, resize="crop")
    evaluated = {
        preprocess.load_image(tf.constant(example.encoded), geometry).numpy().tobytes(): CLASS_NAMES[example.label]
        for example in examples
    }
    for row in rows:
        assert evaluated[row.evaluation.pixels.tobytes()] == row.evaluation.parts[0][0]
        assert row.evaluation.parts == [(row.evaluation.parts[0][0], 1.0)]


def test_shares_of_a_mixed_image_are_those_of_its_target(dataset_dir: pathlib.Path) -> None:
    config = make_config("none", "augment.mixup_alpha=1.0")
    rows = load_preview(dataset_dir, config=config, num_images=8, num_visits=4)
    seen = [visit for row in rows for visit in row.visits]
    mixed = [visit for visit in seen if len(visit.parts) > 1]
    assert len(mixed) > len(seen) / 2
    for visit in mixed:
        assert sum(share for _, share in visit.parts) == pytest.approx(1)
        assert visit.parts[0][1] >= 0.5
        assert visit.parts[0][0] in CLASS_NAMES and visit.parts[1][0] in CLASS_NAMES


def test_with_nothing_random_there_is_one_visit_and_it_is_the_evaluation_image(dataset_dir: pathlib.Path) -> None:
    for row in load_preview(dataset_dir, config=make_config("none"), num_images=3, num_visits=5):
        (visit,) = row.visits
        np.testing.assert_array_equal(visit.pixels, row.evaluation.pixels)


def test_weighted_sampling_shows_the_examples_that_it_draws(dataset_dir: pathlib.Path) -> None:
    config = make_config("light", "data.sampling=weighted")
    rows = load_preview(dataset_dir, config=config, num_images=5, num_visits=3)
    assert [len(row.visits) for row in rows] == [3] * 5


def test_the_sheet_has_a_tile_for_every_image_and_is_written_as_png(
    dataset_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config, path = make_config("strong"), tmp_path / "sheet.png"
    write_preview(dataset_dir, path, config=config, num_images=3, num_visits=4)
    with PIL.Image.open(path) as image:
        assert image.format == "PNG"
        sheet = np.asarray(image)
    rows = load_preview(dataset_dir, config=config, num_images=3, num_visits=4)
    # Small images are enlarged pixel by pixel: every seventh pixel of a tile is one of the image.
    tiles = [seen.pixels for row in rows for seen in (row.evaluation, *row.visits)]
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (1, 7 * SIZE_PX))[:, :, 0, ::7]
    for tile in tiles:
        assert (windows == tile[0, :, 0]).all(axis=-1).any()
    assert sheet.shape[1] > 5 * 7 * SIZE_PX and sheet.shape[0] > 3 * 7 * SIZE_PX


def test_long_and_odd_class_names_stay_within_their_column() -> None:
    image = np.full([24, 24, 3], 128, np.uint8)
    names = ["x" * 500, "", "two\nlines", "\ud800 no text", "日本語"]
    rows = [SeenRow(SeenImage(image, [(name, 1.0)]), [SeenImage(image, [(name, 0.6), ("b", 0.4)])]) for name in names]
    sheet = np.asarray(draw_sheet(rows, title="t" * 1000))
    # Two tiles and the gaps around them: nothing is written in the margin on the right.
    assert (sheet[:, -20:] == 255).all()
    assert (sheet[80:, 24 + 168 : 24 + 168 + 12] == 255).all(), "nor between the columns"


def test_a_dataset_without_training_images_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="holds no manifest"):
        write_preview(tmp_path, tmp_path / "sheet.png", config=make_config("light"))
    Manifest(name="empty", source="", class_names=["a"], seed=0, splits={}).save(tmp_path)
    with pytest.raises(DataError, match="train"):
        write_preview(tmp_path, tmp_path / "sheet.png", config=make_config("light"))
    empty = Split(num_examples=0, class_counts=[0], shards=[])
    Manifest(name="empty", source="", class_names=["a"], seed=0, splits={"train": empty}).save(tmp_path)
    with pytest.raises(DataError, match="train"):
        write_preview(tmp_path, tmp_path / "sheet.png", config=make_config("light"))
    assert not (tmp_path / "sheet.png").exists()
