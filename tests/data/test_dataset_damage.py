"""Damage to a dataset, also after it was opened: an error that names it, and never another example."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from small_shards import NUM_EXAMPLES, example, write_dataset
from typer.testing import CliRunner

from trainer.cli.app import app
from trainer.data.dataset.checks import check_splits
from trainer.data.dataset.manifest import FILE_NAME, Manifest
from trainer.data.dataset.records import Example
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.dataset.verify import verify_dataset
from trainer.errors import DataError, StorageError, UsageError

Dataset = tuple[pathlib.Path, Manifest]
FILES = [f"train-{i:05}-of-00003{suffix}" for i in range(3) for suffix in (".tfrecord", ".idx")]
PAYLOADS = [example(i).to_payload() for i in range(NUM_EXAMPLES)]

many = hypothesis.settings(
    max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture
def dataset(tmp_path: pathlib.Path) -> Dataset:
    """Examples 0 to 7 in three shards."""
    return tmp_path, write_dataset(tmp_path)


def read_each(reader: SplitReader) -> list[bytes | DataError]:
    """Every payload, or the error that reading it ends in; any other exception is a failure."""
    found: list[bytes | DataError] = []
    for i in range(NUM_EXAMPLES):
        try:
            found += reader.read(np.array([i]))
        except DataError as e:
            found.append(e)
    return found


def check_reads(reader: SplitReader, file: str) -> int:
    """Compare what is read: the right payload, or an error that names the shard; return how many were errors."""
    found = read_each(reader)
    for payload, expected in zip(found, PAYLOADS, strict=True):
        if isinstance(payload, DataError):
            assert file.partition(".")[0] in str(payload)
            assert "again" in str(payload)
        else:
            assert payload == expected
    num_errors = sum(isinstance(payload, DataError) for payload in found)
    if num_errors == 0:
        assert reader.read(np.arange(NUM_EXAMPLES)) == PAYLOADS
    else:
        with pytest.raises(DataError, match=file.partition(".")[0]):
            reader.read(np.arange(NUM_EXAMPLES))
    return num_errors


@many
@hypothesis.given(file=st.sampled_from(FILES), position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_does_not_matter(dataset: Dataset, file: str, position: float, bit: int) -> None:
    directory, manifest = dataset
    path = directory / file
    with restored_after(path) as sound:
        flipped, place = bytearray(sound), int(position * len(sound))
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        assert file in {damage.file for damage in verify_dataset(directory).damages}
        if file.endswith(".idx"):
            with pytest.raises(DataError, match=f"{file} fails its checksum"):
                SplitReader(directory, manifest, "train")
        else:
            check_splits(directory, manifest, ["train"])
            with SplitReader(directory, manifest, "train") as reader:
                num_errors = check_reads(reader, file)
            # Only the header of a record, which a reader with an index does not need, may be damaged unseen.
            assert num_errors == (0 if is_in_header(sound, place) else 1)


def is_in_header(shard: bytes, place: int) -> bool:
    start = 0
    while place >= start + 12:
        start += 12 + int.from_bytes(shard[start : start + 8], "little") + 4
        if place < start:
            return False
    return True


@many
@hypothesis.given(file=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_refused_at_the_start_and_survived_after_it(
    dataset: Dataset, file: str, share: float
) -> None:
    directory, manifest = dataset
    path = directory / file
    with restored_after(path) as sound:
        with SplitReader(directory, manifest, "train") as reader:
            os.truncate(path, int(share * len(sound)))
            num_errors = check_reads(reader, file)
            # The last field of an index, the weight, is not needed to read a record.
            assert num_errors > 0 or file.endswith(".idx")
        with pytest.raises(DataError, match=f"{file} is truncated"):
            check_splits(directory, manifest, ["train"])
        assert not verify_dataset(directory).passed


@many
@hypothesis.given(
    file=st.sampled_from(FILES), content=st.binary(min_size=1, max_size=40), position=st.floats(0, 1, exclude_max=True)
)
def test_bytes_written_after_the_start_give_no_other_example(
    dataset: Dataset, file: str, content: bytes, position: float
) -> None:
    """Also in an index: offsets and lengths of any size must neither be read nor allocated."""
    directory, manifest = dataset
    path = directory / file
    with restored_after(path) as sound, SplitReader(directory, manifest, "train") as reader:
        with path.open("r+b") as f:
            f.seek(int(position * len(sound)))
            f.write(content[: len(sound) - f.tell()])
        check_reads(reader, file)
        reader.labels()


def test_the_error_names_shard_record_and_byte_with_a_fix(dataset: Dataset) -> None:
    directory, manifest = dataset
    path = directory / FILES[4]
    with SplitReader(directory, manifest, "train") as reader:
        offset = int(reader.locate(np.array([6])).offsets[0])
        damage_byte(path, offset + 3)
        begin = offset - 12
        with pytest.raises(DataError) as raised:
            reader.read(np.array([6]))
    assert str(raised.value) == (
        f"the shard {path} is damaged: record 2 at byte {begin} fails its CRC-32C; copy the shard again, or prepare "
        "the dataset again (trainer verify DATASET lists all damage)"
    )


@contextlib.contextmanager
def restored_after(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the bytes of the file, and write them again after the block."""
    sound = path.read_bytes()
    try:
        yield sound
    finally:
        path.write_bytes(sound)


def damage_byte(path: pathlib.Path, place: int) -> None:
    with path.open("r+b") as f:
        f.seek(place)
        (byte,) = f.read(1)
        f.seek(place)
        f.write(bytes([byte ^ 16]))


def of_one_size(i: int) -> Example:
    return Example(encoded=b"%04d" % i, labels=(i % 3,), format="png", filename="f", height=1, width=1)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda i: Example(**{**vars(of_one_size(i)), "encoded": b"x" * (i + 1 if i < 2 else 4 - i)}), "CRC-32C"),
        (of_one_size, "is not the one of its index: record 0 at byte 0 does not have the label 0"),
    ],
    ids=["other-lengths", "same-lengths"],
)
def test_a_shard_exchanged_for_another_of_its_size_is_found(
    tmp_path: pathlib.Path, make: Callable[[int], Example], problem: str
) -> None:
    manifest = write_dataset(tmp_path, 2, 2, make=make)
    one, other = (tmp_path / shard.file_name for shard in manifest.splits["train"].shards)
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    other.write_bytes(first)
    check_splits(tmp_path, manifest, ["train"])
    with SplitReader(tmp_path, manifest, "train") as reader:
        for shard in (0, 2):
            with pytest.raises(DataError, match=problem if shard == 0 else "train-00001"):
                reader.read(np.array([shard]))
    assert {damage.file for damage in verify_dataset(tmp_path).damages} == {one.name, other.name}


def test_a_disk_that_cannot_be_read_is_named(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with SplitReader(*dataset, "train") as reader:
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(DataError, match=r"train-00000.*cannot be read \(Input/output error\); check the disk"):
            reader.read(np.array([0]))


@many
@hypothesis.given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_manifest_is_found(dataset: Dataset, position: float, bit: int) -> None:
    directory, manifest = dataset
    path = directory / FILE_NAME
    with restored_after(path) as sound:
        flipped = bytearray(sound)
        flipped[int(position * len(sound))] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            found = Manifest.load(directory)
        except DataError as e:
            assert "prepare the dataset again" in str(e)
        else:
            assert found == manifest  # white space, or the name of the checksum itself


def test_a_manifest_of_an_earlier_version_has_no_checksum_of_its_own(dataset: Dataset) -> None:
    directory, manifest = dataset
    fields = json.loads((directory / FILE_NAME).read_text())
    assert len(fields.pop("sha256")) == 64
    (directory / FILE_NAME).write_text(json.dumps(fields, indent=2))
    assert Manifest.load(directory) == manifest
    assert verify_dataset(directory).passed


def run_verify(*arguments: object):
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def test_the_command_says_that_a_dataset_is_sound(dataset: Dataset) -> None:
    ended = run_verify(dataset[0])
    assert ended.exit_code == 0
    assert ended.stdout == "verified: 7 files, 8 records\n"
    assert "8/8" in ended.stderr
    answer = json.loads(run_verify(dataset[0], "--json").stdout)
    assert answer["passed"]
    assert (answer["schema_version"], answer["num_records"], answer["damages"]) == (1, 8, [])


def test_the_command_lists_all_damage_and_fails(dataset: Dataset) -> None:
    directory, _ = dataset
    damage_byte(directory / FILES[0], 30)
    damage_byte(directory / FILES[1], 0)
    damage_byte(directory / FILES[4], 0)
    (directory / FILES[2]).unlink()
    ended = run_verify(directory, "--json")
    assert isinstance(ended.exception, StorageError)
    assert ended.exception.exit_status == 1
    assert f"{directory}/{FILES[1]} fails its checksum" in str(ended.exception)
    answer = json.loads(ended.stdout)
    assert not answer["passed"]
    assert answer["num_damaged_records"] == 2
    assert [(damage["file"], damage["record"], damage["offset"]) for damage in answer["damages"]] == [
        (FILES[1], None, None),
        (FILES[0], 0, 0),
        (FILES[0], None, None),
        (FILES[2], None, None),
        (FILES[4], 0, 0),
        (FILES[4], None, None),
    ]
    assert f"{FILES[4]} is damaged: record 0 at byte 0 has a damaged header\n" in run_verify(directory).stdout


def test_a_damaged_manifest_is_damage_too(dataset: Dataset) -> None:
    path = dataset[0] / FILE_NAME
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    ended = run_verify(dataset[0])
    assert isinstance(ended.exception, StorageError)
    assert "manifest.json was changed after it was written" in str(ended.exception)


def test_options_of_exports_are_refused_for_a_dataset(dataset: Dataset) -> None:
    ended = run_verify(dataset[0], "--parity-images", 3)
    assert isinstance(ended.exception, UsageError)
    assert ended.exception.exit_status == 2
    assert f"use: trainer verify {dataset[0]}" in str(ended.exception)
