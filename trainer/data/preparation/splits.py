"""Which example goes to which split, and in what order: arithmetic on names and a seed, and nothing else.

An example's place comes from a hash of (seed, purpose, file name). It does not depend on the order in which a
folder is listed, the number of workers or the versions of libraries, and hardly on the other examples.
"""

import collections
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from trainer.data.dataset.manifest import SPLITS, SplitName

_T = TypeVar("_T", bound=Hashable)
# From the number of images in each part of a class to how many of them are taken.
SizesOf = Callable[[Mapping[int | None, int]], dict[int | None, int]]


def order_key(seed: int, purpose: str, name: bytes) -> bytes:
    """Sorting by this key shuffles; the same for the same arguments everywhere. `name` is a file's or a group's."""
    return hashlib.blake2b(f"{seed}\0{purpose}\0".encode() + name, digest_size=16).digest()


def sizes_of_fraction(counts: Mapping[_T, int], fraction: float) -> dict[_T, int]:
    """`fraction` of each of `counts`, rounded, at least one of each; never less for a larger fraction."""
    return {part: min(count, max(1, round(count * fraction))) for part, count in counts.items()}


def sizes_per_class(counts: Mapping[_T, int], num_examples: int) -> dict[_T, int]:
    """`num_examples` in all, or as many as there are, divided like `counts`; at least one of each as far as it goes."""
    total = sum(counts.values())
    if total <= num_examples:
        return dict(counts)
    sizes = {part: max(1, count * num_examples // total) for part, count in counts.items()}
    while sum(sizes.values()) > num_examples:  # for the ones that were given: from the largest, last the rarest
        sizes[max(sizes, key=lambda part: (sizes[part], -counts[part]))] -= 1
    for part in sorted(counts, key=lambda part: -counts[part]):  # what rounding down left over
        sizes[part] = min(counts[part], sizes[part] + num_examples - sum(sizes.values()))
    return sizes


def cut_sizes(num_examples: int, fractions: Mapping[SplitName, float]) -> dict[SplitName, int]:
    """How many of a class's examples go to each split of `fractions`, the rest being for training.

    round(num_examples * fraction), at least one, and so that at least one is left for training; there must be more
    examples than splits.
    """
    sizes = {split: max(1, round(num_examples * fraction)) for split, fraction in fractions.items()}
    # Rounding up must not take the last training example of a small class.
    while sizes and sum(sizes.values()) >= num_examples and max(sizes.values()) > 1:
        sizes[max(sizes, key=lambda split: sizes[split])] -= 1
    return sizes


class Stratification:
    """Fills the splits so that each has its share of every stratum (the class, or the rarest of several).

    Groups come first, whole and one after the other, by `place_group`; `sizes_of_singles` then says how many of the
    examples without a group go where, which makes up for what the groups had too much of.
    """

    def __init__(
        self, num_examples: Mapping[int, int], num_units: Mapping[int, int], fractions: Mapping[SplitName, float]
    ):
        """`num_examples` and `num_units` (groups, and examples without one) of each stratum.

        `fractions`: of the splits that are to be cut; "train" gets the rest.
        """
        self._splits: Sequence[SplitName] = [split for split in SPLITS if split == "train" or split in fractions]
        self._num_units_left = collections.Counter(num_units)
        # How many examples each split still wants of each stratum; below zero where it has too many.
        self._wanted: dict[SplitName, dict[int, int]] = {split: {} for split in self._splits}
        self._sizes: dict[SplitName, dict[int, int]] = {split: {} for split in self._splits}
        for stratum, count in num_examples.items():
            sizes = cut_sizes(count, fractions)
            for split in self._splits:
                wanted = sizes.get(split, count - sum(sizes.values()))
                self._wanted[split][stratum] = self._sizes[split][stratum] = wanted

    def place_group(self, counts: Mapping[int, int]) -> SplitName:
        """Chooses the split of a group with so many examples of each stratum.

        One that still lacks a stratum comes first where there are only as many units left as such splits; then the
        one with the least too many; then the one that is furthest from full.
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
        """How many of the `num_singles` examples of `stratum` without a group go to each split; sums up to them."""
        lacking = self._lacking(stratum)
        cut = [split for split in self._splits if split != "train"]
        sizes: dict[SplitName, int] = {split: max(int(split in lacking), self._wanted[split][stratum]) for split in cut}
        num_free = num_singles - int("train" in lacking)
        while sum(sizes.values()) > max(0, num_free):
            sizes[max(sizes, key=lambda split: sizes[split])] -= 1
        sizes["train"] = num_singles - sum(sizes.values())
        return sizes

    def _lacking(self, stratum: int) -> list[SplitName]:
        """The splits that have none of `stratum`."""
        return [split for split in self._splits if self._wanted[split][stratum] == self._sizes[split][stratum]]

    def _cost(self, split: SplitName, counts: Mapping[int, int]) -> tuple[int, float]:
        wanted, sizes = self._wanted[split], self._sizes[split]
        too_many = sum(max(0, count - max(0, wanted[stratum])) for stratum, count in counts.items())
        still_empty = sum(count * wanted[stratum] / max(1, sizes[stratum]) for stratum, count in counts.items())
        return too_many, -still_empty
