"""The ids of every global batch, as the input pipeline really reads them, for any number of workers and any start."""

import io
import pathlib

import numpy as np
import PIL.Image
import pytest
from small_shards import write_dataset

from trainer.data.augmentation.presets import PRESETS
from trainer.data.dataset.records import Example
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import TrainingStream, open_split
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology

NUM_EXAMPLES, BATCH = 37, 16
NUM_STEPS = -(-3 * NUM_EXAMPLES // BATCH)


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Labels are the numbers of the examples."""
    content = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, "PNG")

    def make(i: int) -> Example:
        return Example(
            encoded=content.getvalue(), labels=(i,), format="png", filename="f", height=8, width=8, weight=1 + i % 5
        )

    directory = tmp_path_factory.mktemp("numbered") / "set"
    write_dataset(directory, 20, 17, make=make)
    return directory


def global_batches(
    dataset_dir: pathlib.Path, order: ExampleOrder, num_workers: int, start_step: int = 0
) -> list[tuple[list[int], list[int]]]:
    """For each step, positions and ids over all workers, without what only fills up the slices."""
    reader = open_split(dataset_dir, "train")
    workers = []
    for worker in range(num_workers):
        stream = TrainingStream(
            reader=reader,
            order=order,
            geometry=Geometry(image_size_px=8, resize="crop"),
            augmentation=PRESETS["none"],
            division=BatchDivision(BATCH, num_workers),
            topology=Topology(
                strategy="single" if num_workers == 1 else "horovod",
                device="cpu",
                num_local_replicas=1,
                num_workers=num_workers,
                worker_index=worker,
            ),
            num_positions=3 * NUM_EXAMPLES,
        )
        workers.append(list(stream.dataset(start_step, NUM_STEPS).as_numpy_iterator()))
    steps = []
    for parts in zip(*workers, strict=True):
        is_real = [part.weights > 0 for part in parts]
        steps.append(
            tuple(
                np.concatenate([values[real] for values, real in zip(column, is_real, strict=True)]).tolist()
                for column in ([part.positions for part in parts], [part.labels for part in parts])
            )
        )
    return steps


@pytest.mark.parametrize(
    ("sampling", "run_length", "nums_workers"),
    [("uniform", 1, (2, 3, 4, 8)), ("uniform", 4, (3,)), ("class_balanced", 1, (3,)), ("weighted", 1, (3,))],
)
def test_global_batches_of_three_epochs_hold_the_same_ids_on_any_number_of_workers(
    dataset_dir: pathlib.Path, sampling: str, run_length: int, nums_workers: tuple[int, ...]
) -> None:
    reader = open_split(dataset_dir, "train")
    order = ExampleOrder.of(
        sampling=sampling,
        run_length=run_length,
        num_examples=NUM_EXAMPLES,
        seed=7,
        labels=reader.labels() // 8,
        weights=reader.weights(),
    )
    alone = global_batches(dataset_dir, order, 1)
    positions = [position for step, _ in alone for position in step]
    assert positions == list(range(3 * NUM_EXAMPLES))
    ids = np.array([i for _, step in alone for i in step])
    assert ids.tolist() == order.draw(np.arange(3 * NUM_EXAMPLES)).examples.numpy().tolist()
    if sampling == "uniform":
        assert (np.sort(ids.reshape(3, -1)) == np.arange(NUM_EXAMPLES)).all()
    for num_workers in nums_workers:
        assert global_batches(dataset_dir, order, num_workers) == alone
    assert global_batches(dataset_dir, order, 2, 3) == alone[3:]
