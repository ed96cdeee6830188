"""The store of features: found under their key alone, whole or not at all, within a budget."""

import os
import pathlib

import numpy as np
import pytest

from trainer.errors import DataError
from trainer.features.store import FeatureStore

KEY = {"weights": "a", "shards": ["b", "c"], "precision": "float32"}
ROWS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def open_store(directory: pathlib.Path, budget_bytes: int = 2**20) -> FeatureStore:
    return FeatureStore(directory / "store", budget_bytes=budget_bytes)


def fill(store: FeatureStore, key: dict[str, object], rows: np.ndarray = ROWS) -> None:
    with store.write("train", key, rows.shape) as writer:
        writer.write(rows[:3])
        writer.write(rows[3:])


def test_what_is_written_in_parts_is_read_whole(tmp_path: pathlib.Path) -> None:
    store = open_store(tmp_path)
    assert store.open("train", KEY) is None
    fill(store, KEY)
    found = store.open("train", KEY)
    assert found is not None and found.dtype == np.float32
    np.testing.assert_array_equal(found, ROWS)


@pytest.mark.parametrize("change", [{"weights": "x"}, {"shards": ["b"]}, {"layer": "pool"}], ids=str)
def test_another_key_finds_nothing(tmp_path: pathlib.Path, change: dict[str, object]) -> None:
    store = open_store(tmp_path)
    fill(store, KEY)
    assert store.open("train", KEY | change) is None
    assert store.open("validation", KEY) is None


@pytest.mark.parametrize("damage", ["bit", "shorter", "no header", "header"])
def test_damaged_features_are_not_there(tmp_path: pathlib.Path, damage: str) -> None:
    store = open_store(tmp_path)
    fill(store, KEY)
    path = store.path("train", KEY)
    file, header = path / "features.float32", path / "header.json"
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[5] ^= 1
        file.write_bytes(content)
    elif damage == "shorter":
        file.write_bytes(content[:-4])
    elif damage == "no header":
        header.unlink()
    else:
        header.write_text(header.read_text()[:-20])
    assert store.open("train", KEY) is None
    fill(store, KEY)
    assert store.open("train", KEY) is not None


def test_a_writer_that_fails_leaves_nothing(tmp_path: pathlib.Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(KeyError), store.write("train", KEY, ROWS.shape) as writer:
        writer.write(ROWS[:1])
        raise KeyError("the trunk failed")
    assert store.open("train", KEY) is None
    assert [path.name for path in store.directory.iterdir()] == [".lock"]


def test_what_was_not_used_for_longest_makes_room(tmp_path: pathlib.Path) -> None:
    store = open_store(tmp_path, budget_bytes=2000)
    rows = np.ones((4, 50), np.float32)  # 800 bytes, and a header
    keys: list[dict[str, object]] = [{"number": i} for i in range(3)]
    for i, key in enumerate(keys[:2]):
        fill(store, key, rows)
        header = store.path("train", key) / "header.json"
        os.utime(header, (1000 + i, 1000 + i))
    assert store.open("train", keys[0]) is not None  # used just now
    fill(store, keys[2], rows)
    assert [store.open("train", key) is not None for key in keys] == [True, False, True]


def test_a_place_that_cannot_be_written_is_an_error_with_the_fix(tmp_path: pathlib.Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(DataError, match=r"--set features\.dir=DIRECTORY"):
        fill(open_store(tmp_path), KEY)
