"""Which example goes to which split, and in what order: arithmetic on names and a seed, and nothing else.

An example's place comes from a hash of (seed, purpose, file name). It does not depend on the order in which a
folder is listed, the number of workers or the versions of libraries, and hardly on the other examples.
"""

import collections
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from trainer.data.manifest import SPLITS, SplitName
from trainer.errors import DataError


class Labelled(Protocol):
    """What is known of an example when it is given a split."""

    @property
    def filename(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def split(self) -> SplitName | None: ...


def order_key(seed: int, purpose: str, filename: str) -> bytes:
    """Sorting by this key shuffles; the same for the same arguments everywhere."""
    text = f"{seed}\0{purpose}\0{filename}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def splits_to_cut(examples: Sequence[Labelled], fractions: Mapping[SplitName, float]) -> list[SplitName]:
    """The splits with a fraction above 0 that the source has not filled itself."""
    fixed = {example.split for example in examples}
    return [split for split in SPLITS if fractions.get(split, 0) > 0 and split not in fixed]


def choose_splits(
    examples: Sequence[Labelled], fractions: Mapping[SplitName, float], seed: int
) -> dict[SplitName, list[int]]:
    """Positions in `examples` for each split that is not empty, shuffled; every position appears once.

    `fractions` holds those of "validation" and "test". An example with a `split` of its own goes there. The others
    of each class are divided alike: round(n * fraction), at least one, for each of `splits_to_cut`, and the rest, at
    least one, is for training. `check_class_counts` says beforehand whether there are enough.
    """
    cut = splits_to_cut(examples, fractions)
    chosen: dict[SplitName, list[int]] = {split: [] for split in SPLITS}
    pools: dict[str, list[int]] = collections.defaultdict(list)
    for position, example in enumerate(examples):
        if example.split is None:
            pools[example.class_names[0]].append(position)
        else:
            chosen[example.split].append(position)
    for pool in pools.values():
        pool.sort(key=lambda position: order_key(seed, "split", examples[position].filename))
        start = 0
        for split, count in _cut_sizes(len(pool), {split: fractions[split] for split in cut}).items():
            chosen[split] += pool[start : start + count]
            start += count
        chosen["train"] += pool[start:]
    for positions in chosen.values():
        positions.sort(key=lambda position: order_key(seed, "order", examples[position].filename))
    return {split: positions for split, positions in chosen.items() if positions}


def _cut_sizes(num_examples: int, fractions: dict[SplitName, float]) -> dict[SplitName, int]:
    sizes = {split: max(1, round(num_examples * fraction)) for split, fraction in fractions.items()}
    # Rounding up must not take the last training example of a small class.
    while sizes and sum(sizes.values()) >= num_examples and max(sizes.values()) > 1:
        sizes[max(sizes, key=lambda split: sizes[split])] -= 1
    return sizes


def check_class_counts(
    examples: Sequence[Labelled], class_names: Sequence[str], fractions: Mapping[SplitName, float]
) -> None:
    """Raises DataError for fewer than two classes, or a class that cannot have an example in every split."""
    if len(class_names) < 2:
        raise DataError(
            f"the source has {len(class_names) or 'no'} class{'' if len(class_names) else 'es'}"
            f"{f' ({class_names[0]!r})' if class_names else ''}; a classifier needs at least 2: add another class"
        )
    cut = splits_to_cut(examples, fractions)
    fixed = {example.split for example in examples} - {None}
    counts = collections.Counter((example.class_names[0], example.split) for example in examples)
    for class_name in class_names:
        num_free, num_needed = counts[class_name, None], 1 + len(cut)
        if num_free < num_needed:
            names = ", ".join(["train", *cut])
            drop = " or ".join(f"--{'val' if split == 'validation' else 'test'} 0" for split in cut)
            raise DataError(
                f"the class {class_name!r} has {num_free} readable images to divide, and needs one for each of "
                f"{num_needed} splits ({names}); add images, remove the class{f', or give {drop}' if drop else ''}"
            )
        for split in sorted(split for split in fixed if split):
            if not counts[class_name, split]:
                raise DataError(
                    f"the class {class_name!r} has no readable image in the source's own {split} split; add images "
                    "or remove the class"
                )
