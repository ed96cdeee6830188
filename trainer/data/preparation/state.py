"""The state of a preparation in a SQLite database, for bounded memory and for resuming after a kill.

Each stage reads the tables of the previous one and fills its own, in one transaction, except for `checks` and `shards`,
which grow while images are checked and written: what they contain is not done again.
"""

import contextlib
import functools
import json
import pathlib
import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from trainer.data.dataset.manifest import SPLITS, Shard, SplitName
from trainer.data.preparation import splits
from trainer.data.sources import Candidate

FILE_NAME = "state.sqlite"
# Facts set by the listing.
CLASS_NAMES, NUM_LEFT_OUT, FINGERPRINT = "class_names", "num_left_out", "fingerprint"
# Facts set by the check.
DEEP_SAMPLES = "deep_samples"
# Files of the source that are not candidates, see `sources.left_behind.PassedOver`.
NUM_IGNORED, BESIDE = "num_ignored", "beside"
# The origin of each split, see `manifest.SplitOrigin`.
SPLIT_ORIGINS = "split_origins"
# True if training images of the source may go to other splits.
TRAINING_FREED = "training_freed"
# Prefix of a `reason`, followed by the kind, for files that count as ignored and not as bad.
IGNORED = "ignored: "
IS_BAD = f"reason IS NOT NULL AND substr(reason, 1, {len(IGNORED)}) != '{IGNORED}'"

# File names are bytes, because they need not be UTF-8. `labels` are those of the example, ascending, separated by
# commas; `stratum` is the rarest of them. Splits are numbered as in `manifest.SPLITS`. `checks` has the digest of the
# bytes in the source and the properties of the stored image, or the `reason` why the file is not used;
# `highest_sample` is as in `image_check.ReadableImage`.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS candidates (
    id INTEGER PRIMARY KEY, filename BLOB NOT NULL, labels TEXT NOT NULL, stratum INTEGER NOT NULL, split INTEGER,
    weight REAL NOT NULL, in_group BLOB, locator BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS checks (
    id INTEGER PRIMARY KEY, digest BLOB, num_bytes INTEGER, format TEXT, height INTEGER, width INTEGER, change TEXT,
    reason TEXT, highest_sample INTEGER
);
CREATE TABLE IF NOT EXISTS chosen (id INTEGER PRIMARY KEY, split INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS places (
    split INTEGER, position INTEGER, id INTEGER NOT NULL, PRIMARY KEY (split, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shards (split INTEGER, number INTEGER, shard TEXT, PRIMARY KEY (split, number));
"""
_TABLES = ("facts", "candidates", "checks", "chosen", "places", "shards")
_CANDIDATE_COLUMNS = "candidates.id, filename, labels, candidates.split, weight, in_group, locator"
_CACHE_KIB = 16 * 1024


class StoredImage(NamedTuple):
    """An image of the dataset: its candidate, the `digest` of its bytes in the source, and the stored image."""

    candidate: Candidate
    labels: tuple[int, ...]
    digest: bytes
    num_bytes: int
    format: str
    height: int
    width: int
    change: str | None


class State:
    """The database of a preparation; use it from one thread."""

    def __init__(self, path: pathlib.Path, *, seed: int) -> None:
        """Open or create `path`; queries may use `order_key(purpose, name)`, see `splits.order_key`, with `seed`.

        Raises:
            sqlite3.DatabaseError: the file is not a database.
        """
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self.connection.create_function(
            "order_key", 2, lambda purpose, name: splits.order_key(seed, purpose, name), deterministic=True
        )
        self.connection.executescript(_SCHEMA)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    def close(self) -> None:
        # A partly read cursor, for example of a generator left by an exception, would keep the database locked.
        for cursor in list(self._cursors):
            cursor.close()
        self.connection.close()

    def select(self, query: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run a query whose many rows are read one by one."""
        cursor = self.connection.execute(query, parameters)
        self._cursors.add(cursor)
        return cursor

    def clear(self) -> None:
        """Delete all rows."""
        self.__dict__.pop("_class_names", None)
        with self.transaction():
            for table in _TABLES:
                self.connection.execute(f"DELETE FROM {table}")  # noqa: S608

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the block, or roll it back if an exception leaves it."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def fact(self, name: str) -> Any:
        """Return the value set by `set_fact`, or None."""
        row = self.connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_fact(self, name: str, value: Any) -> None:
        """Store a JSON value."""
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def scalar(self, query: str, *parameters: Any) -> Any:
        """Return the single value of `query`."""
        return self.connection.execute(query, parameters).fetchone()[0]

    def candidates_after(self, last_id: int, limit: int, check: str = "") -> list[tuple[int, Candidate]]:
        """Return the next candidates by id, with their ids, optionally only those that meet a condition on `checks`."""
        checked = f"JOIN checks ON checks.id = candidates.id AND {check}" if check else ""
        rows = self.connection.execute(
            f"SELECT {_CANDIDATE_COLUMNS} FROM candidates {checked} WHERE candidates.id > ? "  # noqa: S608
            "ORDER BY candidates.id LIMIT ?",
            (last_id, limit),
        )
        return [(row[0], self._to_candidate(*row)) for row in rows]

    def images_at(self, split: SplitName, start: int, end: int) -> Iterator[StoredImage]:
        """Yield the images at the positions [start, end) of a split, in order."""
        rows = self.select(
            f"SELECT {_CANDIDATE_COLUMNS}, digest, num_bytes, format, height, width, change "  # noqa: S608
            "FROM places JOIN candidates ON candidates.id = places.id JOIN checks ON checks.id = places.id "
            "WHERE places.split = ? AND position >= ? AND position < ? ORDER BY position",
            (SPLITS.index(split), start, end),
        )
        for row in rows:
            yield StoredImage(self._to_candidate(*row[:7]), to_labels(row[2]), *row[7:])

    def _to_candidate(
        self,
        _: int,
        filename: bytes,
        labels: str,
        split: int | None,
        weight: float,
        group: bytes | None,
        locator: bytes,
    ) -> Candidate:
        names = self._class_names
        return Candidate(
            filename=to_text(filename),
            class_names=tuple([names[label] for label in to_labels(labels)]),
            split=None if split is None else SPLITS[split],
            weight=weight,
            group=None if group is None else to_text(group),
            locator=to_text(locator),
        )

    @functools.cached_property
    def _class_names(self) -> list[str]:
        names: list[str] = self.fact(CLASS_NAMES)
        return names

    def insert(self, table: str, rows: Iterable[tuple[Any, ...]], *, replace: bool = False) -> None:
        """Insert `rows`, each with a value for every column of `table`; `replace` overwrites existing ones."""
        assert table in _TABLES
        num_columns = len(self.connection.execute(f"PRAGMA table_info({table})").fetchall())
        placeholders = ", ".join("?" * num_columns)
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        self.connection.executemany(f"{verb} INTO {table} VALUES ({placeholders})", rows)

    def shards(self, split: SplitName) -> dict[int, Shard]:
        """Return the finished shards by number."""
        rows = self.connection.execute(
            "SELECT number, shard FROM shards WHERE split = ? ORDER BY number", (SPLITS.index(split),)
        )
        return {number: Shard.model_validate_json(text) for number, text in rows}


def to_labels(text: str) -> tuple[int, ...]:
    """Parse the column `labels`."""
    return tuple(map(int, text.split(",")))


def to_bytes(text: str) -> bytes:
    """Encode a file name; surrogates turn back into the bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def to_text(name: bytes) -> str:
    """Invert `to_bytes`."""
    return name.decode("utf-8", "surrogateescape")


def printable(name: bytes) -> str:
    """Decode a name for messages and JSON; bytes that are not UTF-8 become \\xNN."""
    return name.decode("utf-8", "backslashreplace")
