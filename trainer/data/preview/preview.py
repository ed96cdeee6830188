"""Preview what the model sees in training: images as evaluated, and then augmented at several visits.

The images go through the input pipeline and the augmentation on the device, as in a run with the same configuration on
this dataset, at their positions in the stream of examples.
"""

import dataclasses
import io
import pathlib

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config.config import Config
from trainer.data.augmentation.changes import unpack
from trainer.data.augmentation.mixing import pair_mixes
from trainer.data.augmentation.on_device import augment_batch
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.records import Example
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.dataset.storage import DatasetPath
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import Tensor, TrainingStream, open_split
from trainer.data.input.read_errors import as_data_errors
from trainer.data.preview.contact_sheet import draw_sheet
from trainer.data.preview.seen_image import SeenImage, SeenRow
from trainer.data.sampling.order import Draws, ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology
from trainer.errors import DataError
from trainer.system import atomic

Positions = npt.NDArray[np.int64]

# Positions drawn at a time when looking for the visits of images: some megabytes.
_NUM_SCANNED = 2**18
DEFAULT_SIZE_PX = 224


def write_preview(
    dataset_dir: DatasetPath,
    path: pathlib.Path,
    *,
    config: Config,
    image_size_px: int | None = None,
    num_images: int = 8,
    num_visits: int = 6,
) -> None:
    """Write a contact sheet as PNG: a row for each image, first as evaluated, then its visits.

    See `load_preview` for the arguments and errors.
    """
    rows = load_preview(
        dataset_dir, config=config, image_size_px=image_size_px, num_images=num_images, num_visits=num_visits
    )
    name = Manifest.load(dataset_dir).name
    sheet = draw_sheet(rows, title=f"{name}: what the model sees in training, augment.preset {config.augment.preset}")
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    atomic.write_bytes(path, content.getvalue())


def load_preview(
    dataset_dir: DatasetPath,
    *,
    config: Config,
    image_size_px: int | None = None,
    num_images: int = 8,
    num_visits: int = 6,
) -> list[SeenRow]:
    """Return a row for each of `num_images` training images, of as many classes as possible, the first of the stream.

    Args:
        dataset_dir: a prepared dataset.
        config: of the run to preview.
        image_size_px: side of the model's input; None for the configured one, or 224 if the backbone decides.
        num_images: how many images to show.
        num_visits: the most visits per image, the first ones; 1 if nothing random is configured.

    Raises:
        DataError: the dataset cannot be read, or cannot be sampled as configured.
        ConfigError: the settings of the sampling are inconsistent.
    """
    manifest = Manifest.load(dataset_dir)
    geometry = Geometry(
        image_size_px=image_size_px or config.model.image_size_px or DEFAULT_SIZE_PX, resize=config.data.resize
    )
    augmentation = resolve_augmentation(config.augment)
    if not (augmentation.crops or augmentation.changes_on_device):
        num_visits = 1
    with open_split(dataset_dir, "train") as reader, tf.device("CPU:0"):
        if reader.num_examples == 0:
            raise DataError(
                f"the dataset {dataset_dir} has no train images to preview; prepare it again with smaller shares for "
                "validation and test"
            )
        order = _make_order(config, reader, manifest)
        visits = _find_visits(order, _choose_examples(order, reader, num_images), num_visits)
        pairs = [_pair_of(position, config.train.global_batch_size) for found in visits.values() for position in found]
        augmented = _augment(config, reader, order, geometry, np.concatenate(pairs))
        names = _ClassNames(reader, manifest)
        rows, first = [], 0
        for example, positions in visits.items():
            row = SeenRow(_evaluation_image(reader, example, geometry, names), [])
            for i, position in enumerate(positions, first):
                pair = order.draw(pairs[i]).examples.numpy()
                row.visits.append(augmented.image(2 * i + int(pairs[i][1] == position), pair, names))
            rows.append(row)
            first += len(positions)
    return rows


def _make_order(config: Config, reader: SplitReader, manifest: Manifest) -> ExampleOrder:
    return ExampleOrder.of(
        num_examples=reader.num_examples,
        seed=config.train.seed,
        sampling=config.data.sampling,
        run_length=config.data.run_length,
        labels=reader.labels(),
        weights=reader.weights(),
        class_names=manifest.class_names,
    )


def _choose_examples(order: ExampleOrder, reader: SplitReader, num_images: int) -> list[int]:
    """Choose the first examples of the stream, taking the classes in turn."""
    stream = order.draw(np.arange(min(order.num_examples, _NUM_SCANNED))).examples.numpy()
    stream = stream[np.sort(np.unique(stream, return_index=True)[1])]
    num_before: dict[int, int] = {}
    # Rank of each example within its class; lower ranks are taken first.
    ranks = []
    for label in reader.labels()[stream].tolist():
        ranks.append(num_before.get(label, 0))
        num_before[label] = ranks[-1] + 1
    return [int(example) for example in stream[np.argsort(ranks, kind="stable")][:num_images]]


def _find_visits(order: ExampleOrder, examples: list[int], num_visits: int) -> dict[int, list[int]]:
    """Find the first positions of each example, at most `num_visits`, within three times as many epochs."""
    found: dict[int, list[int]] = {example: [] for example in examples}
    end = 3 * num_visits * order.num_examples
    for start in range(0, end, _NUM_SCANNED):
        positions = np.arange(start, min(start + _NUM_SCANNED, end))
        drawn = order.draw(positions).examples.numpy()
        for i in np.flatnonzero(np.isin(drawn, examples)).tolist():
            if len(found[drawn[i]]) < num_visits:
                found[drawn[i]].append(start + i)
        if all(len(of_example) == num_visits for of_example in found.values()):
            break
    return found


def _pair_of(position: int, global_batch_size: int) -> Positions:
    """Return the two positions that are mixed, `position` among them; it twice if it has no partner."""
    in_batch = position % global_batch_size
    first = in_batch // 2 * 2
    if first + 1 == global_batch_size:
        return np.array([position, position])
    return position - in_batch + np.array([first, first + 1])


class _ChosenPositions(ExampleOrder):
    """An order restricted to chosen positions of another order."""

    def __init__(self, order: ExampleOrder, positions: Positions) -> None:
        super().__init__(order.num_examples, order.seed)
        self._order, self._positions = order, positions

    def draw(self, positions: Tensor) -> Draws:
        return self._order.draw(tf.gather(tf.constant(self._positions), positions))


@dataclasses.dataclass(frozen=True)
class _AugmentedPairs:
    """Augmented images of pairs of positions, two rows each, and the share of each image in its mix."""

    pixels: npt.NDArray[np.uint8]
    shares: npt.NDArray[np.float32]

    def image(self, row: int, pair: npt.NDArray[np.int64], names: "_ClassNames") -> SeenImage:
        own, partner = int(pair[row % 2]), int(pair[1 - row % 2])
        share = float(self.shares[row])
        parts = [(names.of(own), share)]
        if share < 1 and own != partner:
            parts.append((names.of(partner), 1 - share))
        return SeenImage(self.pixels[row], parts)


def _augment(
    config: Config, reader: SplitReader, order: ExampleOrder, geometry: Geometry, positions: Positions
) -> _AugmentedPairs:
    """Load and augment one batch of the examples at `positions`, as in training."""
    augmentation = resolve_augmentation(config.augment)
    stream = TrainingStream(
        reader=reader,
        order=_ChosenPositions(order, positions),
        geometry=geometry,
        augmentation=augmentation,
        division=BatchDivision(len(positions), 1),
        topology=Topology(strategy="single", device="cpu", num_local_replicas=1),
        num_positions=len(positions),
        scaled_decoding=config.data.scaled_decoding,
    )
    with as_data_errors():
        (batch,) = stream.dataset(0, 1)
    no_targets = tf.zeros([len(positions), 1])
    pixels, _ = augment_batch(augmentation, batch.images, no_targets, batch.randomness, batch.positions)
    shares = np.ones([len(positions)], np.float32)
    if augmentation.mixes:
        mixing = unpack(augmentation, batch.randomness).mixing
        shares = pair_mixes(mixing, batch.positions)[:, -1].numpy()
    return _AugmentedPairs(np.round(pixels.numpy()).astype(np.uint8), shares)


class _ClassNames:
    """The class names of examples, joined if there are several."""

    def __init__(self, reader: SplitReader, manifest: Manifest) -> None:
        self._reader, self._manifest = reader, manifest

    def of(self, example: int) -> str:
        labels = _read(self._reader, example).labels
        return ", ".join(self._manifest.class_names[label] for label in labels)


def _evaluation_image(reader: SplitReader, example: int, geometry: Geometry, names: _ClassNames) -> SeenImage:
    pixels = preprocess.load_image(tf.constant(_read(reader, example).encoded), geometry).numpy()
    return SeenImage(pixels, [(names.of(example), 1.0)])


def _read(reader: SplitReader, example: int) -> Example:
    return Example.from_payload(reader.read(np.array([example]))[0])
