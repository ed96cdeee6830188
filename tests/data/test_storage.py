"""Datasets in an object store: published with the manifest last, read in place, and clear about what cannot be.

ram:// is TensorFlow's file system in memory: the same interface as gs://, without a network.
"""

import io
import itertools
import pathlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from small_shards import NUM_EXAMPLES, example, write_dataset

from trainer.data.augmentation.presets import PRESETS
from trainer.data.dataset.checks import check_splits
from trainer.data.dataset.manifest import FILE_NAME, Manifest, is_prepared
from trainer.data.dataset.publish import publish_dataset
from trainer.data.dataset.records import Example
from trainer.data.dataset.split_reader import SplitReader, iterate_examples
from trainer.data.dataset.storage import RemotePath, num_bytes_of, parse_path
from trainer.data.dataset.verify import verify_dataset
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import TrainingStream, open_split
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology
from trainer.errors import DataError

_numbers = itertools.count()


@pytest.fixture
def target() -> RemotePath:
    path = parse_path(f"ram://bucket-{next(_numbers)}/data/set/")
    assert isinstance(path, RemotePath)
    return path


@pytest.fixture
def published(tmp_path: pathlib.Path, target: RemotePath) -> tuple[RemotePath, Manifest]:
    manifest = write_dataset(tmp_path / "local")
    publish_dataset(tmp_path / "local", target)
    return target, manifest


def write(path: RemotePath, content: bytes) -> None:
    with tf.io.gfile.GFile(str(path), "wb") as f:
        f.write(content)


def test_urls_and_local_paths_are_told_apart() -> None:
    assert parse_path("some/dir") == pathlib.Path("some/dir")
    remote = parse_path("gs://bucket/some/set/")
    assert str(remote) == "gs://bucket/some/set"
    assert (remote.name, str(remote / "manifest.json")) == ("set", "gs://bucket/some/set/manifest.json")
    assert str(remote.resolve()) == "gs://bucket/some/set"


@pytest.mark.parametrize("url", ["s3://bucket/set", "hdfs://host/set", "https://host/set"])
def test_other_stores_are_an_error_that_suggests_a_mount(url: str) -> None:
    with pytest.raises(DataError, match=f"{url} is in a store that cannot be read directly; mount it as a folder"):
        parse_path(url)


def test_a_published_dataset_reads_as_the_local_one(published: tuple[RemotePath, Manifest]) -> None:
    remote, manifest = published
    assert is_prepared(remote)
    assert Manifest.load(remote) == manifest
    check_splits(remote, manifest, ["train"])
    assert verify_dataset(remote).passed
    assert list(iterate_examples(remote, manifest, "train")) == [example(i) for i in range(NUM_EXAMPLES)]
    with SplitReader(remote, manifest, "train") as reader:
        assert reader.labels().tolist() == [i % 3 for i in range(NUM_EXAMPLES)]
        shuffled = np.random.default_rng(0).integers(0, NUM_EXAMPLES, 200)
        assert reader.read(shuffled) == [example(int(i)).to_payload() for i in shuffled]


def test_a_place_without_a_manifest_holds_no_dataset(target: RemotePath) -> None:
    assert not is_prepared(target)
    with pytest.raises(DataError, match=rf"{target} holds no manifest\.json, so it is not a prepared dataset"):
        Manifest.load(target)


@pytest.mark.parametrize("suffix", [".tfrecord", ".idx"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [("flip", "fails its checksum"), ("cut", "is truncated"), ("grow", "is too long"), ("remove", "is missing")],
)
def test_damage_in_the_store_is_named(
    published: tuple[RemotePath, Manifest], suffix: str, damage: str, problem: str
) -> None:
    remote, manifest = published
    path = remote / f"train-00001-of-00003{suffix}"
    content = bytearray(path.read_bytes())
    tf.io.gfile.remove(str(path))
    if damage == "flip":
        content[len(content) // 2] ^= 1
    if damage != "remove":
        write(path, bytes({"cut": content[:-1], "grow": content + b"\0"}.get(damage, content)))
    if (suffix, damage) != (".tfrecord", "flip"):
        with pytest.raises(DataError, match=f"{path} {problem}.*prepare the dataset again"):
            check_splits(remote, manifest, ["train"])
        with pytest.raises(DataError, match=f"{path} {problem}"):
            SplitReader(remote, manifest, "train")
    else:
        with (
            SplitReader(remote, manifest, "train") as reader,
            pytest.raises(DataError, match=f"{path} is damaged: record 0 at byte 0 fails its CRC-32C"),
        ):
            reader.read(np.arange(NUM_EXAMPLES))
    assert path.name in {damage.file for damage in verify_dataset(remote).damages}


@pytest.mark.parametrize(("num_left", "problem"), [(20, "is truncated: record 0 at byte 0 has"), (None, "was removed")])
def test_a_shard_that_changes_under_the_reader_is_named(
    published: tuple[RemotePath, Manifest], num_left: int | None, problem: str
) -> None:
    remote, manifest = published
    path = remote / manifest.splits["train"].shards[2].file_name
    content = path.read_bytes()
    with SplitReader(remote, manifest, "train") as reader:
        tf.io.gfile.remove(str(path))
        if num_left is not None:
            write(path, content[:num_left])
        with pytest.raises(DataError, match=f"{path} {problem}"):
            reader.read(np.array([7, 4]))
        with pytest.raises(DataError, match=f"{path} (is truncated: record 3 at byte 675 has 0 of its|was removed)"):
            reader.read(np.array([7]))


def test_the_manifest_is_written_last_and_a_copy_that_failed_can_be_repeated(
    tmp_path: pathlib.Path, target: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_dataset(tmp_path / "local")
    copied: list[str] = []
    copy = tf.io.gfile.copy

    def copy_some(source: str, destination: str, overwrite: bool) -> None:
        if len(copied) == 4:
            raise tf.errors.UnavailableError(None, None, "no network")
        copied.append(destination)
        copy(source, destination, overwrite=overwrite)

    with monkeypatch.context() as patched:
        patched.setattr(tf.io.gfile, "copy", copy_some)
        with pytest.raises(DataError, match=r"cannot be used \(no network\); check"):
            publish_dataset(tmp_path / "local", target)
    assert not is_prepared(target)
    assert f"{target}/{FILE_NAME}" not in copied
    publish_dataset(tmp_path / "local", target)
    check_splits(target, manifest, ["train"])


def test_a_dataset_is_replaced_only_when_asked_and_is_never_half_of_each(
    tmp_path: pathlib.Path, published: tuple[RemotePath, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, manifest = published
    other = write_dataset(tmp_path / "other", 2, 2)
    with pytest.raises(DataError, match="holds a prepared dataset already; give --overwrite"):
        publish_dataset(tmp_path / "other", remote)
    assert Manifest.load(remote) == manifest
    copy, is_there = tf.io.gfile.copy, []

    def watch(source: str, destination: str, overwrite: bool) -> None:
        is_there.append(is_prepared(remote))
        copy(source, destination, overwrite=overwrite)

    monkeypatch.setattr(tf.io.gfile, "copy", watch)
    publish_dataset(tmp_path / "other", remote, overwrite=True)
    assert is_there == [False] * 5
    assert Manifest.load(remote) == other
    check_splits(remote, other, ["train"])


def test_a_damaged_dataset_is_not_published(tmp_path: pathlib.Path, target: RemotePath) -> None:
    manifest = write_dataset(tmp_path / "local")
    shard = tmp_path / "local" / manifest.splits["train"].shards[1].file_name
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{shard} is truncated"):
        publish_dataset(tmp_path / "local", target)
    assert not (target / manifest.splits["train"].shards[0].file_name).exists()


def test_sizes_of_files_in_a_store_and_here(published: tuple[RemotePath, Manifest], tmp_path: pathlib.Path) -> None:
    remote, _ = published
    assert num_bytes_of(remote / FILE_NAME) == num_bytes_of(tmp_path / "local" / FILE_NAME) > 0
    with pytest.raises(FileNotFoundError):
        num_bytes_of(remote / "other")


def test_training_reads_from_a_store_what_it_reads_from_a_disk(tmp_path: pathlib.Path, target: RemotePath) -> None:
    def picture(i: int) -> Example:
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
        content = io.BytesIO()
        PIL.Image.fromarray(pixels).save(content, "PNG")
        return Example(
            encoded=content.getvalue(), labels=(i % 3,), format="png", filename=f"{i}.png", height=20, width=30
        )

    write_dataset(tmp_path / "local", 7, 6, make=picture)
    publish_dataset(tmp_path / "local", target)

    def batches(place: pathlib.Path | RemotePath) -> list:
        stream = TrainingStream(
            reader=open_split(place, "train"),
            order=ExampleOrder(13, 0),
            geometry=Geometry(image_size_px=16, resize="crop"),
            augmentation=PRESETS["light"],
            division=BatchDivision(4, 1),
            topology=Topology(strategy="single", device="cpu", num_local_replicas=1),
            num_positions=24,
        )
        return list(stream.dataset(0, 6).as_numpy_iterator())

    for here, there in zip(batches(tmp_path / "local"), batches(target), strict=True):
        for left, right in zip(here, there, strict=True):
            np.testing.assert_array_equal(left, right)
