"""The last findings of a preparation, for the manifest and for people: bad files, duplicates and counts."""

import collections
import itertools
import json
import os
import pathlib
from collections.abc import Mapping

from trainer.data.dataset.manifest import (
    BAD_FILES_NAME,
    MAX_LISTED,
    SPLITS,
    BadFile,
    Duplicate,
    Manifest,
    Shard,
    Split,
    SplitName,
)
from trainer.data.preparation.options import PrepareOptions
from trainer.data.preparation.state import (
    BESIDE,
    CLASS_NAMES,
    DEEP_SAMPLES,
    IGNORED,
    IS_BAD,
    NUM_IGNORED,
    NUM_LEFT_OUT,
    SPLIT_ORIGINS,
    State,
    printable,
    to_labels,
)
from trainer.errors import DataError

_OF_BAD_FILES = f"FROM checks JOIN candidates ON candidates.id = checks.id WHERE {IS_BAD} ORDER BY filename"
_BAD_FILES = f"SELECT filename, reason {_OF_BAD_FILES}"


def check_bad_fraction(state: State, max_bad_fraction: float) -> None:
    """Raise DataError if a larger share of the checked files cannot be used."""
    num_checked, num_bad = state.connection.execute(
        f"SELECT count(reason IS NULL OR {IS_BAD} OR NULL), count({IS_BAD} OR NULL) FROM checks"  # noqa: S608
    ).fetchone()
    if num_bad <= max_bad_fraction * num_checked:
        return
    first = ", ".join(f"{bad.path} ({bad.reason})" for bad in _first_bad_files(state, 3))
    more = f" and {num_bad - 3:,} more" if num_bad > 3 else ""
    raise DataError(
        f"{num_bad:,} of {num_checked:,} files ({num_bad / num_checked:.1%}) cannot be used, more than "
        f"--max-bad-fraction {max_bad_fraction:g}: {first}{more}; repair or remove them, or accept so many with "
        f"--max-bad-fraction {_enough_for(num_bad, num_checked):g}"
    )


def _enough_for(num_bad: int, num_checked: int) -> float:
    """Return the smallest share, in hundredths, that accepts so many bad files."""
    return next(i / 100 for i in range(101) if num_bad <= i / 100 * num_checked)


def write_bad_files(state: State, directory: pathlib.Path) -> None:
    """Write `bad_files.jsonl` with every unusable file, sorted by name, if there are any."""
    rows = iter(state.select(_BAD_FILES))
    first = next(rows, None)
    if first is None:
        return
    with (directory / BAD_FILES_NAME).open("w", encoding="utf-8") as f:
        for filename, reason in itertools.chain([first], rows):
            f.write(json.dumps({"path": printable(filename), "reason": reason}, ensure_ascii=False) + "\n")
        f.flush()
        os.fsync(f.fileno())


def make_manifest(
    state: State, name: str, source_text: str, options: PrepareOptions, shards: Mapping[SplitName, list[Shard]]
) -> Manifest:
    """Build the manifest of the written shards."""
    class_names: list[str] = state.fact(CLASS_NAMES)
    kind_of_reason = "substr(reason, 1, instr(reason || ':', ':') - 1)"
    counts, has_several_labels = _count_classes(state, len(class_names))
    num_duplicates, duplicates = _find_duplicates(state)
    return Manifest(
        name=name,
        source=source_text,
        class_names=class_names,
        seed=options.seed,
        task="multi_label" if has_several_labels else "single_label",
        splits={
            split: Split(
                num_examples=sum(shard.num_examples for shard in of_split), class_counts=counts[split], shards=of_split
            )
            for split, of_split in shards.items()
        },
        has_weights=bool(
            state.scalar("SELECT count(*) FROM chosen JOIN candidates ON candidates.id = chosen.id WHERE weight != 1.0")
        ),
        options=options.decisive(),
        num_bad_files=_counted(
            state,
            f"SELECT {kind_of_reason}, count(*) FROM checks WHERE {IS_BAD} GROUP BY 1",  # noqa: S608
        ),
        bad_files=_first_bad_files(state, MAX_LISTED),
        num_duplicates_across_splits=num_duplicates,
        duplicates=duplicates,
        num_reencoded=_counted(state, "SELECT change, count(*) FROM checks WHERE change IS NOT NULL GROUP BY 1"),
        num_left_out=state.fact(NUM_LEFT_OUT),
        num_ignored=_num_ignored(state),
        beside=state.fact(BESIDE) or [],
        split_origins=state.fact(SPLIT_ORIGINS) or {},
        deep_samples=state.fact(DEEP_SAMPLES),
    )


def _num_ignored(state: State) -> dict[str, int]:
    """Count ignored files by kind, recognized by name or by content."""
    counts = collections.Counter(state.fact(NUM_IGNORED) or {})
    counts.update(
        _counted(
            state,
            f"SELECT substr(reason, {len(IGNORED) + 1}), count(*) FROM checks "  # noqa: S608
            f"WHERE reason IS NOT NULL AND NOT ({IS_BAD}) GROUP BY 1",
        )
    )
    return dict(sorted(counts.items()))


def _first_bad_files(state: State, limit: int) -> list[BadFile]:
    rows = state.connection.execute(f"{_BAD_FILES} LIMIT ?", (limit,))
    return [BadFile(path=printable(filename), reason=reason) for filename, reason in rows]


def _counted(state: State, query: str) -> dict[str, int]:
    return dict(state.connection.execute(f"{query} ORDER BY 1").fetchall())


def _count_classes(state: State, num_classes: int) -> tuple[dict[SplitName, list[int]], bool]:
    """Count the examples of each class in each split, and return whether any has several classes."""
    counts: dict[SplitName, list[int]] = collections.defaultdict(lambda: [0] * num_classes)
    has_several = False
    for labels, split, count in state.connection.execute(
        "SELECT labels, chosen.split, count(*) FROM chosen JOIN candidates ON candidates.id = chosen.id GROUP BY 1, 2"
    ):
        of_example = to_labels(labels)
        has_several |= len(of_example) > 1
        for label in of_example:
            counts[SPLITS[split]][label] += count
    return counts, has_several


def _find_duplicates(state: State) -> tuple[int, list[Duplicate]]:
    """Count the files whose bytes are also in another split, and list the first of them by name."""
    of_chosen = "chosen JOIN checks ON checks.id = chosen.id JOIN candidates ON candidates.id = chosen.id"
    execute = state.connection.execute
    execute("CREATE TEMP TABLE IF NOT EXISTS twice (digest BLOB PRIMARY KEY, first BLOB, num_files INTEGER)")
    execute("DELETE FROM twice")
    execute(
        f"INSERT INTO twice SELECT digest, min(filename), count(*) FROM {of_chosen} "  # noqa: S608
        "GROUP BY digest HAVING count(DISTINCT chosen.split) > 1"
    )
    rows = execute(
        "SELECT first, chosen.split, min(filename) FROM "
        "(SELECT * FROM twice ORDER BY first LIMIT ?) AS listed JOIN checks ON checks.digest = listed.digest "
        "JOIN chosen ON checks.id = chosen.id JOIN candidates ON candidates.id = chosen.id "
        "GROUP BY first, chosen.split ORDER BY first, chosen.split",
        (MAX_LISTED,),
    )
    listed = [
        Duplicate(paths={SPLITS[split]: printable(filename) for _, split, filename in of_first})
        for _, of_first in itertools.groupby(rows, key=lambda row: bytes(row[0]))
    ]
    return state.scalar("SELECT coalesce(sum(num_files), 0) FROM twice"), listed
