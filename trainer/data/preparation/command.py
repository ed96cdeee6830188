"""Build the command that prepares a dataset again, with some options changed."""

import shlex

from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.storage import DatasetPath
from trainer.data.preparation.options import PrepareOptions
from trainer.errors import DataError

_FLAGS = {
    "validation_fraction": "--val",
    "test_fraction": "--test",
    "train_fraction": "--train",
    "seed": "--seed",
    "fraction": "--fraction",
    "per_class": "--per-class",
    "group_column": "--group-column",
    "max_side_px": "--max-side",
    "sample_bits": "--sample-bits",
    "sha256": "--sha256",
}


def prepare_command(manifest: Manifest, dataset_dir: DatasetPath, **changed: object) -> str:
    """Return a shell command; `changed` are options by their names in `PrepareOptions`."""
    options = {**manifest.options, "seed": manifest.seed, **changed}
    usual = PrepareOptions()
    words = ["trainer", "prepare", manifest.source, "--out", str(dataset_dir), "--overwrite"]
    for name, flag in _FLAGS.items():
        if name in changed or options.get(name, getattr(usual, name)) != getattr(usual, name):
            words += [flag, str(options[name])]
    for class_name in options.get("exclude", ()):
        words += ["--exclude", class_name]
    return shlex.join(words)


def check_trainable(manifest: Manifest, dataset_dir: DatasetPath) -> None:
    """Raise DataError, with a command that fixes it, if the train or the validation split is empty."""
    needed: tuple[SplitName, ...] = ("train", "validation")
    for split in needed:
        if split not in manifest.splits or not manifest.splits[split].num_examples:
            share = float(manifest.options.get("validation_fraction", 0.0)) or 0.1
            raise DataError(
                f"the dataset {dataset_dir} has no {split} images; training needs both a train and a validation split: "
                f"prepare it again, with: {prepare_command(manifest, dataset_dir, validation_fraction=share)}"
            )
