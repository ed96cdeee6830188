"""Recognize the usual names of the three splits in folders, columns and file names."""

import re
from typing import Final

from trainer.data.dataset.manifest import SplitName

SPLIT_SYNONYMS: Final[dict[str, SplitName]] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "tr": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "validate": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
}
# Words without meaning beside the name of a split: train_set, TestData, images-val.
_FILLERS: Final = "sets?|data|datasets?|images?|imgs?|pictures|pics|photos|splits?|subset|samples|folder|files"
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+")
_JOINED: Final = re.compile(f"({'|'.join(SPLIT_SYNONYMS)})({_FILLERS})")
# Also years and small numbers: val2017, test1.
_MEANINGLESS: Final = re.compile(rf"({_FILLERS}|(19|20)\d\d|\d{{1,2}})")


def find_split(text: str) -> SplitName | None:
    """Return the split that `text` names, in any case and with any separators; None if it names none."""
    return SPLIT_SYNONYMS.get(" ".join(_significant_words(text)))


def find_splits(names: list[str]) -> dict[str, SplitName]:
    """Return the split of each name that is one, alone or within a common pattern (seg_train, seg_test)."""
    found: dict[str, SplitName] = {}
    by_pattern: dict[str, dict[str, SplitName]] = {}
    for name in names:
        split = find_split(name)
        if split is not None:
            found[name] = split
            continue
        words = _significant_words(name)
        splits = [SPLIT_SYNONYMS[word] for word in words if word in SPLIT_SYNONYMS]
        if len(splits) == 1:
            pattern = " ".join("*" if word in SPLIT_SYNONYMS else word for word in words)
            by_pattern.setdefault(pattern, {})[name] = splits[0]
    for of_pattern in by_pattern.values():
        if "train" in of_pattern.values() and len(set(of_pattern.values())) > 1:
            found.update(of_pattern)
    return {name: found[name] for name in names if name in found}


def fixed_split(text: str) -> SplitName | None:
    """Return the split of the images in the part `text` of a source: validation, test, or None.

    It is None for the training part too, which `prepare` may divide further.
    """
    split = find_split(text)
    return None if split == "train" else split


def _significant_words(text: str) -> list[str]:
    words = [word.lower() for word in _WORD.findall(text)]
    joined = (_JOINED.fullmatch(word) for word in words)
    words = [match[1] if match else word for match, word in zip(joined, words, strict=True)]
    return [word for word in words if not _MEANINGLESS.fullmatch(word)]
