"""The third stage: assign each readable image to a split and a position in it."""

import collections
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence

from trainer.data.dataset.manifest import SPLITS, SplitName, SplitOrigin
from trainer.data.preparation.options import PrepareOptions
from trainer.data.preparation.splits import Stratification, sizes_of_fraction
from trainer.data.preparation.state import NUM_LEFT_OUT, SPLIT_ORIGINS, TRAINING_FREED, State, printable, to_labels
from trainer.errors import DataError

# Candidates not known to be bad: all of them before the check, the readable ones after it.
_CHECKS = "checks ON checks.id = candidates.id WHERE reason IS NULL"
_USABLE = f"candidates LEFT JOIN {_CHECKS}"
_FREE = f"{_USABLE} AND candidates.split IS NULL"


def choose_splits(state: State, class_names: Sequence[str], options: PrepareOptions) -> None:
    """Fill the tables `chosen` and `places`: the split of every readable candidate, and its position there.

    A candidate with a `split` of its own keeps it. The others are stratified by class (of several, the rarest) with the
    sizes of `splits.cut_sizes`, in the order of a hash; groups are not divided. If `options.train_fraction` is given,
    the training images are subsampled. Positions are shuffled.

    Raises:
        DataError: a class cannot have an image in every split, or the source itself divides a group.
    """
    check_class_counts(state, class_names, options)
    with state.transaction():
        state.connection.execute("DELETE FROM chosen")
        state.connection.execute("DELETE FROM places")
        state.connection.execute(
            f"INSERT INTO chosen SELECT candidates.id, candidates.split FROM {_USABLE} "  # noqa: S608
            "AND candidates.split IS NOT NULL"
        )
        _check_groups_of_source(state)
        cut = _splits_to_cut(state, options)
        _divide(state, class_names, cut)
        state.set_fact(SPLIT_ORIGINS, _origins(state, cut))
        _subsample_training(state, options.train_fraction)
        _check_chosen(state, class_names, options.seed)
        state.connection.execute(
            "INSERT INTO places SELECT split, row_number() OVER (PARTITION BY split ORDER BY key, filename) - 1, id "
            "FROM (SELECT chosen.split AS split, order_key('order', filename) AS key, filename, chosen.id AS id "
            "FROM chosen JOIN candidates ON candidates.id = chosen.id)"
        )


def _splits_to_cut(state: State, options: PrepareOptions) -> dict[SplitName, float]:
    """Return the fractions of the splits to cut: those the source does not have, if it leaves any image free."""
    own = _splits_of_source(state)
    if None not in own:
        return {}
    return {split: share for split, share in options.fractions.items() if share > 0 and split not in own}


def _splits_of_source(state: State) -> set[SplitName | None]:
    """Return the splits that the source assigns; None among them if it leaves images free."""
    rows = state.connection.execute(f"SELECT DISTINCT candidates.split FROM {_USABLE}").fetchall()  # noqa: S608
    return {None if split is None else SPLITS[split] for (split,) in rows}


def _origins(state: State, cut: Mapping[SplitName, float]) -> dict[SplitName, SplitOrigin]:
    own = _splits_of_source(state)
    is_divided = own != {None} or bool(state.fact(TRAINING_FREED))
    of_cut: SplitOrigin = "rest" if "train" in own else "train" if is_divided else "all"
    found: dict[SplitName, SplitOrigin] = {"train": "given" if is_divided else "all"}
    found.update({split: "given" for split in own if split is not None})
    found.update(dict.fromkeys(cut, of_cut))
    return {split: found[split] for split in SPLITS if split in found}


def check_class_counts(state: State, class_names: Sequence[str], options: PrepareOptions) -> None:
    """Check that there are two classes or more, and that each can have an example in every split.

    It is also called before the images are checked, when all listed ones count.

    Raises:
        DataError: there are too few classes, or too few images of one.
    """
    if len(class_names) < 2:
        raise DataError(
            f"the source has {len(class_names) or 'no'} class{'' if len(class_names) else 'es'}"
            f"{f' ({class_names[0]!r})' if class_names else ''}; a classifier needs at least 2: add another class"
        )
    cut = list(_splits_to_cut(state, options))
    counts: collections.Counter[tuple[int, SplitName | None]] = collections.Counter()
    for labels, split, count in state.connection.execute(
        f"SELECT labels, candidates.split, count(*) FROM {_USABLE} GROUP BY labels, candidates.split"  # noqa: S608
    ):
        for label in to_labels(labels):
            counts[label, None if split is None else SPLITS[split]] += count
    own = sorted({split for _, split in counts if split is not None})
    for label, class_name in enumerate(class_names):
        to_fill: list[SplitName] = [*(() if counts[label, "train"] else ("train",)), *cut]
        num_free = counts[label, None]
        if num_free < len(to_fill):
            # The advice is never to drop the validation split, which training needs.
            drop = "--test 0" if "test" in cut and num_free >= len(to_fill) - 1 else ""
            raise DataError(
                f"the class {class_name!r} has {num_free} readable image{'s'[: num_free != 1]} to divide, and needs "
                f"one for each of {len(to_fill)} splits ({', '.join(to_fill)}); add images, or leave the class out "
                f"with --exclude {shlex.quote(class_name)}{f', or give {drop}' if drop else ''}"
            )
        for split in own:
            if split != "train" and not counts[label, split]:
                raise DataError(
                    f"the class {class_name!r} has no readable image in the source's own {split} split; add images, "
                    f"or leave the class out with --exclude {shlex.quote(class_name)}"
                )


def _divide(state: State, class_names: Sequence[str], fractions: Mapping[SplitName, float]) -> None:
    """Insert all candidates that the source leaves free into `chosen`."""
    num_examples, num_singles, num_units = _count_strata(state)
    if num_units != num_examples:
        _check_group_counts(class_names, num_units, fractions)
    stratification = Stratification(num_examples, num_units, fractions)
    state.connection.execute("CREATE TEMP TABLE IF NOT EXISTS group_splits (name BLOB PRIMARY KEY, split INTEGER)")
    state.connection.execute("DELETE FROM group_splits")
    state.connection.executemany("INSERT INTO group_splits VALUES (?, ?)", _place_groups(state, stratification))
    state.connection.execute(
        "INSERT INTO chosen SELECT candidates.id, group_splits.split "  # noqa: S608
        f"FROM group_splits JOIN candidates ON in_group = name LEFT JOIN {_CHECKS}"
    )
    state.insert("chosen", _place_singles(state, stratification, num_singles))


def _subsample_training(state: State, share: float | None) -> None:
    """Keep at most `share` of the free candidates of each stratum in train; a smaller share is a subset of a larger.

    A group may be kept in part; it is still in no other split.
    """
    if share is None:
        return
    sizes = sizes_of_fraction(_count_strata(state)[0], share)
    state.connection.create_function("train_size", 1, lambda stratum: sizes.get(stratum, 0), deterministic=True)
    num_left_out = state.connection.execute(
        "DELETE FROM chosen WHERE id IN (SELECT id FROM ("
        "  SELECT candidates.id AS id, stratum, row_number() OVER ("
        "    PARTITION BY stratum ORDER BY order_key('split', filename), filename"
        "  ) AS rank FROM chosen JOIN candidates ON candidates.id = chosen.id"
        "  WHERE chosen.split = ? AND candidates.split IS NULL"
        ") WHERE rank > train_size(stratum))",
        (SPLITS.index("train"),),
    ).rowcount
    state.set_fact(NUM_LEFT_OUT, {**(state.fact(NUM_LEFT_OUT) or {}), "over --train": num_left_out})


def _count_strata(state: State) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Count, by stratum, the free examples, those without a group, and the units (groups, and examples without one)."""
    rows = state.connection.execute(
        "SELECT stratum, count(*), sum(in_group IS NULL), count(DISTINCT in_group) "  # noqa: S608
        f"FROM {_FREE} GROUP BY stratum"
    ).fetchall()
    num_examples = {stratum: count for stratum, count, _, _ in rows}
    num_singles = {stratum: singles for stratum, _, singles, _ in rows}
    return num_examples, num_singles, {stratum: singles + groups for stratum, _, singles, groups in rows}


def _place_groups(state: State, stratification: Stratification) -> Iterator[tuple[bytes, int]]:
    rows = state.select(
        f"SELECT in_group, stratum, count(*) FROM {_FREE} AND in_group IS NOT NULL GROUP BY in_group, stratum "  # noqa: S608
        "ORDER BY order_key('split', in_group), in_group"
    )
    for name, of_group in itertools.groupby(rows, key=lambda row: bytes(row[0])):
        split = stratification.place_group({stratum: count for _, stratum, count in of_group})
        yield name, SPLITS.index(split)


def _place_singles(
    state: State, stratification: Stratification, num_singles: Mapping[int, int]
) -> Iterator[tuple[int, int]]:
    rows = state.select(
        f"SELECT stratum, candidates.id FROM {_FREE} AND in_group IS NULL "  # noqa: S608
        "ORDER BY stratum, order_key('split', filename), filename"
    )
    for stratum, of_stratum in itertools.groupby(rows, key=lambda row: int(row[0])):
        sizes = stratification.sizes_of_singles(stratum, num_singles[stratum])
        for split in ("validation", "test", "train"):
            for _, number in itertools.islice(of_stratum, sizes.get(split, 0)):
                yield number, SPLITS.index(split)


def _check_groups_of_source(state: State) -> None:
    row = state.connection.execute(
        f"SELECT in_group FROM {_USABLE} AND in_group IS NOT NULL GROUP BY in_group "  # noqa: S608
        "HAVING count(DISTINCT coalesce(candidates.split, -1)) > 1 ORDER BY in_group LIMIT 1"
    ).fetchone()
    if row is not None:
        raise DataError(
            f"the group {printable(row[0])!r} is in more than one of the source's own splits, or only partly in one; "
            "give all its images the same split, or none"
        )


def _check_group_counts(
    class_names: Sequence[str], num_units: Mapping[int, int], fractions: Mapping[SplitName, float]
) -> None:
    for stratum, count in num_units.items():
        if count < 1 + len(fractions):
            raise DataError(
                f"the class {class_names[stratum]!r} is in {count} group{'s'[: count != 1]}, which are not divided, "
                f"and needs one for each of the splits ({', '.join(['train', *fractions])}); add groups, "
                f"or leave the class out with --exclude {shlex.quote(class_names[stratum])}"
                f"{', or give --test 0' if 'test' in fractions and count >= len(fractions) else ''}"
            )


def _check_chosen(state: State, class_names: Sequence[str], seed: int) -> None:
    """Raise DataError if a split lacks a class, which groups and multi-label images can cause."""
    seen: set[tuple[int, int]] = set()
    for labels, split in state.connection.execute(
        "SELECT DISTINCT labels, chosen.split FROM chosen JOIN candidates ON candidates.id = chosen.id"
    ):
        seen.update((label, split) for label in to_labels(labels))
    for split in sorted({split for _, split in seen}):
        for label, class_name in enumerate(class_names):
            if (label, split) not in seen:
                raise DataError(
                    f"no image of the class {class_name!r} came into the {SPLITS[split]} split, since groups and "
                    "images of several classes are not divided; add images of it, leave it out with "
                    f"--exclude {shlex.quote(class_name)}, or give another seed, such as --seed {seed + 1}"
                )
