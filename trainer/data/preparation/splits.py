"""Assign examples to splits and order them, from names and a seed alone.

An example's position comes from a hash of (seed, purpose, file name). It does not depend on the order of a folder's
listing, the number of workers or library versions, and hardly on the other examples.
"""

import collections
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from trainer.data.dataset.manifest import SPLITS, SplitName

_T = TypeVar("_T", bound=Hashable)
# Maps the number of images in each part of a class to how many of them are taken.
SizesOf = Callable[[Mapping[int | None, int]], dict[int | None, int]]


def order_key(seed: int, purpose: str, name: bytes) -> bytes:
    """Return a sort key that shuffles deterministically; `name` is of a file or a group."""
    return hashlib.blake2b(f"{seed}\0{purpose}\0".encode() + name, digest_size=16).digest()


def sizes_of_fraction(counts: Mapping[_T, int], fraction: float) -> dict[_T, int]:
    """Return `fraction` of each count, rounded, at least one; never less for a larger fraction."""
    return {part: min(count, max(1, round(count * fraction))) for part, count in counts.items()}


def sizes_per_class(counts: Mapping[_T, int], num_examples: int) -> dict[_T, int]:
    """Divide `num_examples`, or as many as there are, in proportion to `counts`, at least one each if possible."""
    total = sum(counts.values())
    if total <= num_examples:
        return dict(counts)
    sizes = {part: max(1, count * num_examples // total) for part, count in counts.items()}
    while sum(sizes.values()) > num_examples:  # make up for those ones: from the largest, the rarest last
        sizes[max(sizes, key=lambda part: (sizes[part], -counts[part]))] -= 1
    for part in sorted(counts, key=lambda part: -counts[part]):  # distribute the remainder of rounding down
        sizes[part] = min(counts[part], sizes[part] + num_examples - sum(sizes.values()))
    return sizes


def cut_sizes(num_examples: int, fractions: Mapping[SplitName, float]) -> dict[SplitName, int]:
    """Return how many of a class's examples go to each split of `fractions`; the rest is for training.

    This is round(num_examples * fraction), at least one, and leaves at least one for training; there must be more
    examples than splits.
    """
    sizes = {split: max(1, round(num_examples * fraction)) for split, fraction in fractions.items()}
    # Rounding up must leave a training example of a small class.
    while sizes and sum(sizes.values()) >= num_examples and max(sizes.values()) > 1:
        sizes[max(sizes, key=lambda split: sizes[split])] -= 1
    return sizes


class Stratification:
    """A stratified assignment to splits by class (of several classes, the rarest).

    Groups are assigned first, whole and one by one, by `place_group`; `sizes_of_singles` then divides the examples
    without a group, so as to compensate for uneven groups.
    """

    def __init__(
        self, num_examples: Mapping[int, int], num_units: Mapping[int, int], fractions: Mapping[SplitName, float]
    ):
        """Plan the sizes of the splits.

        Args:
            num_examples: examples of each stratum.
            num_units: groups, plus examples without a group, of each stratum.
            fractions: of the splits to cut; "train" gets the rest.
        """
        self._splits: Sequence[SplitName] = [split for split in SPLITS if split == "train" or split in fractions]
        self._num_units_left = collections.Counter(num_units)
        # How many examples of each stratum each split still needs; negative if it has too many.
        self._wanted: dict[SplitName, dict[int, int]] = {split: {} for split in self._splits}
        self._sizes: dict[SplitName, dict[int, int]] = {split: {} for split in self._splits}
        for stratum, count in num_examples.items():
            sizes = cut_sizes(count, fractions)
            for split in self._splits:
                wanted = sizes.get(split, count - sum(sizes.values()))
                self._wanted[split][stratum] = self._sizes[split][stratum] = wanted

    def place_group(self, counts: Mapping[int, int]) -> SplitName:
        """Choose the split of a group with these counts of each stratum.

        A split that lacks a stratum comes first if only as many units are left as there are such splits; then the one
        with the smallest excess; then the one furthest from full.
        """
        candidates: Sequence[SplitName] = self._splits
        for stratum in counts:
            lacking = self._lacking(stratum)
            if lacking and self._num_units_left[stratum] <= len(lacking):
                candidates = [split for split in candidates if split in lacking] or candidates
        chosen = min(candidates, key=lambda split: self._cost(split, counts))
        for stratum, count in counts.items():
            self._wanted[chosen][stratum] -= count
            self._num_units_left[stratum] -= 1
        return chosen

    def sizes_of_singles(self, stratum: int, num_singles: int) -> dict[SplitName, int]:
        """Return how many of the `num_singles` examples of `stratum` without a group go to each split."""
        lacking = self._lacking(stratum)
        cut = [split for split in self._splits if split != "train"]
        sizes: dict[SplitName, int] = {split: max(int(split in lacking), self._wanted[split][stratum]) for split in cut}
        num_free = num_singles - int("train" in lacking)
        while sum(sizes.values()) > max(0, num_free):
            sizes[max(sizes, key=lambda split: sizes[split])] -= 1
        sizes["train"] = num_singles - sum(sizes.values())
        return sizes

    def _lacking(self, stratum: int) -> list[SplitName]:
        """Return the splits that have no example of `stratum`."""
        return [split for split in self._splits if self._wanted[split][stratum] == self._sizes[split][stratum]]

    def _cost(self, split: SplitName, counts: Mapping[int, int]) -> tuple[int, float]:
        wanted, sizes = self._wanted[split], self._sizes[split]
        excess = sum(max(0, count - max(0, wanted[stratum])) for stratum, count in counts.items())
        room = sum(count * wanted[stratum] / max(1, sizes[stratum]) for stratum, count in counts.items())
        return excess, -room
