"""Decide, from the manifest and before a run starts, which splits are cached as decoded images, and where."""

import dataclasses
import os
import pathlib
import shutil

from trainer.config.data import DataConfig
from trainer.data.augmentation.presets import Augmentation
from trainer.data.dataset.derived import CACHE_SUFFIX
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.storage import DatasetPath, derived_directory
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pixel_cache import CacheLocation, DiskCache, num_bytes
from trainer.errors import ConfigError
from trainer.system.disk import FREE_SHARE_LEFT, format_size, nearest_directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The location of the cache of each split, for people with a `reason`; `num_bytes` is the size of all of them."""

    train: CacheLocation = "off"
    validation: CacheLocation = "off"
    reason: str
    num_bytes: int = 0
    cache_dir: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheInputs:
    """Everything that the decision depends on.

    Attributes:
        num_epochs: How often the training images are read.
        num_evaluations: How often the validation images are read.
        num_workers: Processes, each of which would hold its own cache in memory.
        is_size_fixed: False where progressive resizing changes the size of the training images.
    """

    config: DataConfig
    manifest: Manifest
    dataset_dir: DatasetPath
    geometry: Geometry
    augmentation: Augmentation
    is_size_fixed: bool
    num_epochs: float
    num_evaluations: int
    num_workers: int
    ram_budget_bytes: int

    def num_bytes(self, splits: list[SplitName]) -> int:
        return sum(num_bytes(self.manifest.splits[split].num_examples, self.geometry) for split in splits)

    @property
    def cache_dir(self) -> pathlib.Path:
        return derived_directory(self.dataset_dir, CACHE_SUFFIX, setting=self.config.cache_dir)

    @property
    def why_train_changes(self) -> str | None:
        """The reason why the pixels of a training image differ from visit to visit; None if they do not."""
        if self.augmentation.crops:
            return f"random crops (augment.min_crop_area {self.augmentation.min_crop_area:g}) make each one new"
        return None if self.is_size_fixed else "progressive resizing (augment.progressive_sizes_px) changes their size"


def plan_cache(inputs: CacheInputs) -> CachePlan:
    """Decide where the decoded images of a run are cached.

    Raises:
        ConfigError: The settings ask for a cache that is impossible.
    """
    mode = inputs.config.cache
    if mode == "off":
        return CachePlan(reason="data.cache is off")
    if mode != "auto":
        return _plan_as_asked(inputs, mode)
    splits: list[SplitName] = []
    if inputs.why_train_changes is None and inputs.num_epochs > 1:
        splits.append("train")
    if inputs.num_evaluations > 1:
        splits.append("validation")
    left_out = _why_not_train(inputs)
    for candidates in dict.fromkeys([tuple(splits), tuple(splits[1:])]):
        location = _find_location(inputs, list(candidates)) if candidates else None
        if location is not None:
            if len(candidates) < len(splits):
                left_out = f"{format_size(inputs.num_bytes(splits))} for the training images too fit nowhere"
            return _make_plan(inputs, list(candidates), location, left_out)
    if splits:
        return CachePlan(
            reason=f"{format_size(inputs.num_bytes(splits))} of decoded images fit neither into the memory budget nor "
            f"on the disk of {inputs.cache_dir}"
        )
    return CachePlan(reason=f"{left_out}; the validation images are read once")


def _plan_as_asked(inputs: CacheInputs, location: CacheLocation) -> CachePlan:
    if inputs.why_train_changes is not None:
        raise ConfigError(
            f"data.cache is {location}, but no decoded training image can be used twice: {inputs.why_train_changes}; "
            "use --set data.cache=auto, which keeps the validation images"
        )
    splits: list[SplitName] = ["train", "validation"]
    needed = inputs.num_bytes(splits)
    if location == "memory" and not _fits_memory(inputs, splits):
        copies = f" for each of {inputs.num_workers} workers" if inputs.num_workers > 1 else ""
        raise ConfigError(
            f"data.cache is memory, but the decoded images take {format_size(needed)}{copies}, and the memory budget "
            f"is {format_size(inputs.ram_budget_bytes)}; raise data.ram_budget_gib, or use --set data.cache=disk"
        )
    if location == "disk":
        _check_disk(inputs, splits)
    return _make_plan(inputs, splits, location, left_out=None)


def _check_disk(inputs: CacheInputs, splits: list[SplitName]) -> None:
    directory = nearest_directory(inputs.cache_dir)
    if not os.access(directory, os.W_OK):
        raise ConfigError(
            f"data.cache is disk, but {directory} cannot be written; name another place with "
            "--set data.cache_dir=DIRECTORY"
        )
    missing, free = _num_missing_bytes(inputs, splits), shutil.disk_usage(directory).free
    if missing > free:
        raise ConfigError(
            f"data.cache is disk, but the decoded images take {format_size(missing)}, and {directory} has "
            f"{format_size(free)} free; name another place with --set data.cache_dir=DIRECTORY, or use "
            "--set data.cache=off"
        )


def _find_location(inputs: CacheInputs, splits: list[SplitName]) -> CacheLocation | None:
    missing, directory = _num_missing_bytes(inputs, splits), nearest_directory(inputs.cache_dir)
    if missing == 0:
        return "disk"
    # Processes share a file through the page cache; each would fill a memory of its own.
    if inputs.num_workers == 1 and _fits_memory(inputs, splits):
        return "memory"
    if os.access(directory, os.W_OK) and missing <= (1 - FREE_SHARE_LEFT) * shutil.disk_usage(directory).free:
        return "disk"
    return None


def _fits_memory(inputs: CacheInputs, splits: list[SplitName]) -> bool:
    return inputs.num_workers * inputs.num_bytes(splits) <= inputs.ram_budget_bytes


def _num_missing_bytes(inputs: CacheInputs, splits: list[SplitName]) -> int:
    """Return the number of bytes to write; splits that an earlier run has cached on the disk count nothing."""
    return sum(
        inputs.num_bytes([split])
        for split in splits
        if not DiskCache(inputs.cache_dir, inputs.manifest, split, inputs.geometry).is_filled()
    )


def _make_plan(
    inputs: CacheInputs, splits: list[SplitName], location: CacheLocation, left_out: str | None
) -> CachePlan:
    what = " and ".join({"train": "training", "validation": "validation"}[split] for split in splits)
    where = "in memory" if location == "memory" else f"in {inputs.cache_dir}"
    reason = f"the decoded {what} images take {format_size(inputs.num_bytes(splits))} {where}"
    if left_out is not None and "train" not in splits:
        reason += f"; not the training images: {left_out}"
    return CachePlan(
        train=location if "train" in splits else "off",
        validation=location if "validation" in splits else "off",
        reason=reason,
        num_bytes=inputs.num_bytes(splits),
        cache_dir=inputs.cache_dir if location == "disk" else None,
    )


def _why_not_train(inputs: CacheInputs) -> str | None:
    if inputs.why_train_changes is not None:
        return inputs.why_train_changes
    return "the training images are read once" if inputs.num_epochs <= 1 else None
