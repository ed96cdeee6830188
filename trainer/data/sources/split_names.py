"""What people call the three splits, in folder names, columns and file names."""

from trainer.data.manifest import SplitName

SPLIT_SYNONYMS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def find_split(text: str) -> SplitName | None:
    """The split that `text` names, in whatever case; None where it names none."""
    return SPLIT_SYNONYMS.get(text.strip().lower())


def fixed_split(text: str) -> SplitName | None:
    """The split that images in the part `text` of a source are fixed to.

    None for those of the training part as well: what a source has not set aside for validation or test is for
    `prepare` to divide further.
    """
    split = find_split(text)
    return None if split == "train" else split


def are_splits(folders: list[str]) -> bool:
    """Whether folders with these names divide a source into splits: `train` and at least one other, nothing else."""
    splits = [find_split(folder) for folder in folders]
    return len(folders) > 1 and "train" in splits and None not in splits
