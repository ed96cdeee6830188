"""A cache of decoded images gives the very pixels that decoding gives, is never used for others, and is never half."""

import dataclasses
import hashlib
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from pixel_sets import encode, photographs, write_dataset

from trainer.config.data import DataConfig
from trainer.data.augmentation.presets import PRESETS
from trainer.data.dataset.manifest import Manifest
from trainer.data.decode import preprocess
from trainer.data.decode.geometry import Geometry
from trainer.data.input import pixel_cache
from trainer.data.input.cache_plan import CacheInputs, CachePlan, plan_cache
from trainer.data.input.pipeline import EvaluationStream, TrainingStream, open_split
from trainer.data.input.pixel_cache import DiskCache, decode_split, open_pixels
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology
from trainer.errors import ConfigError, DataError

pytestmark = pytest.mark.slow

NUM_EXAMPLES = 150
GEOMETRY = Geometry(image_size_px=24, resize="crop")
BYTES = NUM_EXAMPLES * 24 * 24 * 3
TOPOLOGY = Topology(strategy="mirrored", device="cpu", num_local_replicas=2)
GIB = 2**30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    encoded = [encode(image) for image in photographs(NUM_EXAMPLES, width=60, height=40)]
    weights = [1.0 + i % 3 for i in range(NUM_EXAMPLES)]
    return write_dataset(tmp_path_factory.mktemp("datasets") / "photographs", encoded, weights=weights)


def open_on_disk(dataset: pathlib.Path, cache_dir: pathlib.Path, geometry: Geometry = GEOMETRY) -> np.ndarray:
    pixels = open_pixels(dataset, "train", geometry, location="disk", cache_dir=cache_dir)
    assert pixels is not None
    return pixels


def training_stream(dataset: pathlib.Path, pixels: np.ndarray | None) -> TrainingStream:
    return TrainingStream(
        reader=open_split(dataset, "train"),
        order=ExampleOrder(NUM_EXAMPLES, 1),
        geometry=GEOMETRY,
        augmentation=dataclasses.replace(PRESETS["none"], flip=True, erasing=0.5),
        division=BatchDivision(14, 2),
        topology=TOPOLOGY,
        num_positions=2 * NUM_EXAMPLES,
        pixels=pixels,
    )


def assert_same_batches(first, second) -> None:
    batches, others = list(first.as_numpy_iterator()), list(second.as_numpy_iterator())
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        for name in batch._fields:
            np.testing.assert_array_equal(getattr(batch, name), getattr(other, name))
            assert getattr(batch, name).dtype == getattr(other, name).dtype


@pytest.mark.parametrize("location", ["memory", "disk"])
def test_batches_from_a_cache_are_those_without_bit_for_bit(
    dataset: pathlib.Path, tmp_path: pathlib.Path, location: pixel_cache.CacheLocation
) -> None:
    pixels = open_pixels(dataset, "train", GEOMETRY, location=location, cache_dir=tmp_path)
    assert pixels is not None and len(np.unique(pixels.reshape(NUM_EXAMPLES, -1), axis=0)) == NUM_EXAMPLES
    assert_same_batches(training_stream(dataset, pixels).dataset(3, 22), training_stream(dataset, None).dataset(3, 22))
    streams = [
        EvaluationStream(
            reader=open_split(dataset, "train"),
            geometry=GEOMETRY,
            per_replica_batch_size=8,
            topology=TOPOLOGY,
            pixels=used,
        )
        for used in (pixels, None)
    ]
    assert_same_batches(streams[0].dataset(), streams[1].dataset())


def test_a_cache_on_disk_is_filled_once_and_used_again(
    dataset: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_on_disk(dataset, tmp_path)
    monkeypatch.setattr(pixel_cache, "decode_split", lambda *_, **__: pytest.fail("decoded a second time"))
    np.testing.assert_array_equal(open_on_disk(dataset, tmp_path), first)
    assert not first.flags.writeable


@pytest.mark.parametrize("changed", ["an example", "size", "resize", "version"])
def test_what_changes_the_pixels_never_finds_the_old_cache(
    dataset: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    open_on_disk(dataset, tmp_path)
    geometry = GEOMETRY
    if changed == "an example":
        images = photographs(NUM_EXAMPLES, width=60, height=40)
        images[70] = photographs(1, width=60, height=40, seed=9)[0]
        dataset = write_dataset(tmp_path / "changed", [encode(image) for image in images])
    elif changed == "version":
        monkeypatch.setattr(preprocess, "VERSION", preprocess.VERSION + 1)
    elif changed == "size":
        geometry = Geometry(image_size_px=25, resize="crop")
    else:
        geometry = Geometry(image_size_px=24, resize="squash")
    found = open_on_disk(dataset, tmp_path, geometry)
    np.testing.assert_array_equal(found, np.concatenate(list(decode_split(dataset, "train", geometry))))
    assert len(list(tmp_path.glob("train-*"))) == 2


@pytest.mark.parametrize("damage", ["cut short", "header changed", "header missing", "pixels missing"])
def test_a_damaged_cache_is_made_again(dataset: pathlib.Path, tmp_path: pathlib.Path, damage: str) -> None:
    right = open_on_disk(dataset, tmp_path).copy()
    (directory,) = tmp_path.glob("train-*")
    header, pixels = directory / "header.json", directory / "pixels.uint8"
    if damage == "cut short":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "header changed":
        header.write_text(header.read_text().replace('"image_size_px": 24', '"image_size_px": 42'))
    else:
        (header if damage == "header missing" else pixels).unlink()
    assert not DiskCache(tmp_path, Manifest.load(dataset), "train", GEOMETRY).is_filled()
    np.testing.assert_array_equal(open_on_disk(dataset, tmp_path), right)
    assert [path.name for path in tmp_path.glob(".tmp-*")] == []


def start_fill(dataset: pathlib.Path, cache_dir: pathlib.Path, *stop: str) -> subprocess.Popen[str]:
    script = pathlib.Path(__file__).with_name("cache_fill_process.py")
    command = [sys.executable, str(script), str(dataset), str(cache_dir), "24", *stop]
    repository = pathlib.Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=repository, env={"PYTHONPATH": str(repository), "PATH": ""}
    )


def answer_of(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return output.strip()


def test_a_killed_fill_leaves_nothing_that_looks_finished_and_processes_share_the_next_one(
    dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    killed = start_fill(dataset, tmp_path, "64")
    assert killed.stdout is not None and killed.stdout.readline() == "waiting\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    cache = DiskCache(tmp_path, Manifest.load(dataset), "train", GEOMETRY)
    assert not cache.is_filled() and list(tmp_path.glob(".tmp-*"))
    waiting = [start_fill(dataset, tmp_path) for _ in range(2)]
    expected = hashlib.sha256(np.concatenate(list(decode_split(dataset, "train", GEOMETRY))).tobytes()).hexdigest()
    assert {answer_of(process) for process in waiting} == {f"filled {expected}"}
    assert cache.is_filled() and not list(tmp_path.glob(".tmp-*"))


def test_a_place_that_cannot_be_written_is_an_error_with_the_fix(dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written: .*data\.cache_dir"):
        open_on_disk(dataset, tmp_path / "taken")


def question(dataset: pathlib.Path, *, cache: str = "auto", preset: str = "none", **changes) -> CacheInputs:
    arguments = {
        "config": DataConfig(cache=cache, cache_dir=changes.pop("cache_dir", None)),
        "manifest": Manifest.load(dataset),
        "dataset_dir": dataset,
        "geometry": GEOMETRY,
        "augmentation": PRESETS[preset],
        "is_size_fixed": True,
        "num_epochs": 10.0,
        "num_evaluations": 10,
        "num_workers": 1,
        "ram_budget_bytes": GIB,
    }
    return CacheInputs(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "train", "validation", "reason"),
    [
        ({}, "memory", "memory", "training and validation images take 0.5 MiB in memory"),
        ({"preset": "light"}, "off", "memory", "random crops"),
        ({"is_size_fixed": False}, "off", "memory", "progressive resizing"),
        ({"num_epochs": 1.0}, "off", "memory", "the training images are read once"),
        ({"num_epochs": 1.0, "num_evaluations": 1}, "off", "off", "read once"),
        ({"ram_budget_bytes": 2 * BYTES - 1}, "disk", "disk", "photographs.cache"),
        ({"num_workers": 2}, "disk", "disk", "photographs.cache"),
        ({"cache": "off"}, "off", "off", "data.cache is off"),
        ({"cache": "memory"}, "memory", "memory", "in memory"),
        ({"cache": "disk"}, "disk", "disk", "photographs.cache"),
    ],
    ids=str,
)
def test_the_place_follows_from_the_manifest_and_the_budget(
    dataset: pathlib.Path, changes: dict, train: str, validation: str, reason: str
) -> None:
    plan = plan_cache(question(dataset, **changes))
    assert (plan.train, plan.validation) == (train, validation)
    assert reason in plan.reason
    assert plan.num_bytes == BYTES * sum(place != "off" for place in (train, validation))
    assert (plan.cache_dir is not None) == ("disk" in (train, validation))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache": "memory", "preset": "light"}, ["data.cache is memory", "augment.min_crop_area 0.7", "cache=auto"]),
        ({"cache": "disk", "preset": "strong"}, ["data.cache is disk", "augment.min_crop_area"]),
        ({"cache": "memory", "is_size_fixed": False}, ["augment.progressive_sizes_px"]),
        ({"cache": "memory", "ram_budget_bytes": 2 * BYTES - 1}, ["0.5 MiB", "data.ram_budget_gib", "cache=disk"]),
        ({"cache": "memory", "num_workers": 3, "ram_budget_bytes": 5 * BYTES}, ["for each of 3 workers"]),
    ],
    ids=str,
)
def test_a_cache_that_was_asked_for_and_cannot_be_had_is_an_error(
    dataset: pathlib.Path, changes: dict, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        plan_cache(question(dataset, **changes))
    assert all(word in str(error.value) for word in words), error.value


def test_a_disk_that_is_too_small_is_an_error_where_asked_for_and_no_cache_otherwise(
    dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(num_bytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10 * GIB, 0, num_bytes))

    free(2 * BYTES - 1)
    with pytest.raises(ConfigError, match="free"):
        plan_cache(question(dataset, cache="disk"))
    small = question(dataset, ram_budget_bytes=1)
    assert plan_cache(small).train == "off"
    # Half of the disk is left to others: validation alone still has room.
    free(3 * BYTES)
    partly = plan_cache(small)
    assert (partly.train, partly.validation) == ("off", "disk")
    free(4 * BYTES)
    assert plan_cache(small).train == "disk"


def test_a_cache_that_is_there_is_used_whatever_the_memory(
    dataset: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "validation"):
        open_pixels(dataset, split, GEOMETRY, location="disk", cache_dir=tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(GIB, GIB, 0))
    plan = plan_cache(question(dataset, cache_dir=str(tmp_path)))
    assert plan == CachePlan(
        train="disk", validation="disk", reason=plan.reason, num_bytes=2 * BYTES, cache_dir=tmp_path.resolve()
    )
