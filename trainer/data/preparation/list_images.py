"""The first stage: store the candidates of the source in the state, without those left out on request."""

import collections
import difflib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.data.dataset.manifest import BESIDE_CLASSES, SPLITS
from trainer.data.preparation import splits
from trainer.data.preparation.fingerprint import SourceFingerprint
from trainer.data.preparation.options import PrepareOptions
from trainer.data.preparation.state import (
    BESIDE,
    CLASS_NAMES,
    FINGERPRINT,
    NUM_IGNORED,
    NUM_LEFT_OUT,
    TRAINING_FREED,
    State,
    printable,
    to_bytes,
)
from trainer.data.sources import Candidate, Source
from trainer.errors import DataError
from trainer.system.names import check_class_names, find_spelling_twins, normalize_class_name, show_name


def list_candidates(state: State, source: Source, source_text: str, options: PrepareOptions) -> None:
    """Fill the table `candidates` and the facts, in one transaction.

    Raises:
        DataError: `source` has the wrong form, names an image twice, or lacks a class of `options.exclude`.
    """
    with state.transaction():
        listing = _Listing(source, source_text, options.exclude)
        state.insert("candidates", listing.rows())
        class_names = listing.class_names()
        check_class_names(class_names)
        _check_named_once(state)
        _set_labels(state, listing, class_names)
        left_out = {"of an excluded class": listing.num_excluded, BESIDE_CLASSES: source.passed_over.num_beside}
        left_out["over --fraction"] = _leave_out(
            state, lambda counts: splits.sizes_of_fraction(counts, options.fraction)
        )
        if options.per_class is not None:
            per_class = options.per_class
            left_out["over --per-class"] = _leave_out(state, lambda counts: splits.sizes_per_class(counts, per_class))
        state.set_fact(CLASS_NAMES, class_names)
        state.set_fact(NUM_LEFT_OUT, {reason: count for reason, count in left_out.items() if count})
        state.set_fact(NUM_IGNORED, source.passed_over.num_ignored)
        state.set_fact(BESIDE, [printable(to_bytes(name)) for name in source.passed_over.beside])
        _free_training(state, options)
        state.set_fact(FINGERPRINT, listing.fingerprint.hexdigest())


def _free_training(state: State, options: PrepareOptions) -> None:
    """Free the training images of a fully split source if splits it lacks, or a part of train, were asked for."""
    own = {split for (split,) in state.connection.execute("SELECT DISTINCT split FROM candidates")}
    is_missing = any(share > 0 and SPLITS.index(split) not in own for split, share in options.fractions.items())
    if None not in own and (is_missing or options.train_fraction is not None):
        state.connection.execute("UPDATE candidates SET split = NULL WHERE split = ?", (SPLITS.index("train"),))
        state.set_fact(TRAINING_FREED, True)


class _Listing:
    """The rows of `candidates`, and counts made on the way; labels are numbered in order of appearance."""

    def __init__(self, source: Source, source_text: str, exclude: Sequence[str]) -> None:
        self.fingerprint = SourceFingerprint(source, source_text)
        self.num_excluded = 0
        # How many candidates have a class, by its number in order of appearance.
        self.counts: collections.Counter[int] = collections.Counter()
        self._source = source
        self._exclude = frozenset(map(normalize_class_name, exclude))
        self.numbers = {name: number for number, name in enumerate(source.class_names or ())}

    def rows(self) -> Iterator[tuple[Any, ...]]:
        for number, candidate in enumerate(self._source.candidates()):
            self.fingerprint.add(candidate)
            labels = self._labels(candidate)
            if not labels:
                self.num_excluded += 1
                continue
            self.counts.update(labels)
            yield (
                number,
                to_bytes(candidate.filename),
                ",".join(map(str, labels)),
                0,
                None if candidate.split is None else SPLITS.index(candidate.split),
                candidate.weight,
                None if candidate.group is None else to_bytes(candidate.group),
                to_bytes(candidate.locator),
            )

    def _labels(self, candidate: Candidate) -> list[int]:
        numbers = self.numbers
        every = [numbers.setdefault(name, len(numbers)) for name in candidate.class_names]
        if not self._exclude:
            return every
        names = map(normalize_class_name, candidate.class_names)
        return [label for label, name in zip(every, names, strict=True) if name not in self._exclude]

    def class_names(self) -> list[str]:
        """Return the class names in the order of their labels, in Unicode NFC; call it after `rows`.

        Raises:
            DataError: a class to exclude is unknown, or a class has two Unicode spellings.
        """
        given = list(self._source.class_names or sorted(self.numbers))
        twins = find_spelling_twins(given)
        if twins is not None:
            raise DataError(
                f"the class {twins[0]!r} has two Unicode spellings ({twins[0]!a} and {twins[1]!a}), "
                "which look the same; use one of them for both"
            )
        names = [normalize_class_name(name) for name in given]
        for excluded in sorted(self._exclude):
            if excluded not in names:
                near = difflib.get_close_matches(excluded, names, n=1)
                known = ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")
                hint = f"did you mean {near[0]!r}?" if near else f"it has {known}"
                raise DataError(f"--exclude {show_name(excluded)} is no class of the source; {hint}")
        return [name for name in names if name not in self._exclude]


def _check_named_once(state: State) -> None:
    state.connection.create_function("same_path", 1, _same_path, deterministic=True)
    twice = state.connection.execute(
        "SELECT filename, locator, (SELECT locator FROM candidates WHERE id = last) FROM ("
        "  SELECT filename, locator, id, max(id) AS last, min(id) AS first FROM candidates"
        "  GROUP BY same_path(filename) HAVING count(*) > 1"
        ") WHERE id = first OR id = last ORDER BY filename LIMIT 1"
    ).fetchone()
    if twice is None:
        return
    filename, *locators = twice
    lines = sorted(int(locator) for locator in locators if locator.isdigit())
    where = f" (line {lines[0]:,} and line {lines[1]:,})" if len(lines) == 2 else ""
    raise DataError(f"{printable(filename)} is named twice by the source{where}; remove one of the two")


def _same_path(filename: bytes) -> bytes:
    """Normalize a path, so that its spellings compare equal."""
    return os.path.normpath(filename) if b"//" in filename or b"./" in filename else filename


def _set_labels(state: State, listing: _Listing, class_names: Sequence[str]) -> None:
    """Replace the numbers in order of appearance by labels, and set the stratum, the rarest label of each candidate."""
    label_of = {name: label for label, name in enumerate(class_names)}
    names = ((normalize_class_name(name), number) for name, number in listing.numbers.items())
    labels = {number: label_of[name] for name, number in names if name in label_of}
    rarity = {labels[number]: count for number, count in listing.counts.items()}

    def final_labels(text: str) -> str:
        return ",".join(map(str, sorted(labels[int(number)] for number in text.split(","))))

    def rarest(text: str) -> int:
        return min((labels[int(number)] for number in text.split(",")), key=lambda label: (rarity[label], label))

    state.connection.create_function("final_labels", 1, final_labels, deterministic=True)
    state.connection.create_function("rarest", 1, rarest, deterministic=True)
    state.connection.execute("UPDATE candidates SET labels = final_labels(labels), stratum = rarest(labels)")


def _leave_out(state: State, sizes_of: splits.SizesOf) -> int:
    """Keep `sizes_of` candidates of each class in each split of the source; return how many are left out.

    The first by a hash of their names are kept, so a smaller selection is a subset of a larger one.
    """
    counts: dict[int, dict[int | None, int]] = collections.defaultdict(dict)
    for stratum, split, count in state.connection.execute(
        "SELECT stratum, split, count(*) FROM candidates GROUP BY stratum, split ORDER BY stratum, split"
    ):
        counts[stratum][split] = count
    sizes = {stratum: sizes_of(of_split) for stratum, of_split in counts.items()}
    if sizes == counts:
        return 0
    state.connection.create_function("size_of", 2, lambda stratum, split: sizes[stratum][split], deterministic=True)
    return state.connection.execute(
        "DELETE FROM candidates WHERE id IN (SELECT id FROM ("
        "  SELECT id, stratum, split, row_number() OVER ("
        "    PARTITION BY stratum, split ORDER BY order_key('fraction', filename), filename"
        "  ) AS rank FROM candidates"
        ") WHERE rank > size_of(stratum, split))"
    ).rowcount
