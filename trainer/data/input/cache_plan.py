"""Which splits are kept as decoded images, and where: decided from the manifest before a run starts."""

import dataclasses
import os
import pathlib
import shutil

from trainer.config.data import DataConfig
from trainer.data.augmentation.presets import Augmentation
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.storage import DatasetPath, RemotePath
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pixel_cache import CachePlace, DiskCache, num_bytes
from trainer.errors import ConfigError

_BYTES_PER_GIB = 2**30
DIRECTORY_SUFFIX = ".cache"
# A cache that nobody asked for leaves this part of a disk's free space to others.
_FREE_SHARE_LEFT = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachePlan:
    """`reason` is a sentence for people; `num_bytes` is what all cached splits take; `cache_dir` is for "disk"."""

    train: CachePlace = "off"
    validation: CachePlace = "off"
    reason: str
    num_bytes: int = 0
    cache_dir: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheQuestion:
    """All that the decision depends on.

    num_epochs: how often the training images are read. num_evaluations: how often those of validation are.
    num_workers: processes, each of which would hold a cache in memory of its own. is_size_fixed: False where
    progressive resizing changes the size of the training images.
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
        if self.config.cache_dir is not None:
            return pathlib.Path(self.config.cache_dir).resolve()
        dataset_dir = self.dataset_dir.resolve()
        if isinstance(dataset_dir, RemotePath):
            return pathlib.Path(dataset_dir.name + DIRECTORY_SUFFIX).resolve()
        return dataset_dir.with_name(dataset_dir.name + DIRECTORY_SUFFIX)

    @property
    def why_train_changes(self) -> str | None:
        """Why the host gives other pixels of a training image each time; None where it does not."""
        if self.augmentation.crops:
            return f"random crops (augment.min_crop_area {self.augmentation.min_crop_area:g}) make each one new"
        return None if self.is_size_fixed else "progressive resizing (augment.progressive_sizes_px) changes their size"


def plan_cache(question: CacheQuestion) -> CachePlan:
    """Decides for a run.

    Raises:
        ConfigError: a cache was asked for by name and cannot be had.
    """
    mode = question.config.cache
    if mode == "off":
        return CachePlan(reason="data.cache is off")
    if mode != "auto":
        return _plan_as_asked(question, mode)
    splits: list[SplitName] = []
    if question.why_train_changes is None and question.num_epochs > 1:
        splits.append("train")
    if question.num_evaluations > 1:
        splits.append("validation")
    left_out = _why_not_train(question)
    for candidates in dict.fromkeys([tuple(splits), tuple(splits[1:])]):
        place = _find_place(question, list(candidates)) if candidates else None
        if place is not None:
            if len(candidates) < len(splits):
                left_out = f"{_gib(question.num_bytes(splits))} for the training images too fit nowhere"
            return _make_plan(question, list(candidates), place, left_out)
    if splits:
        return CachePlan(
            reason=f"{_gib(question.num_bytes(splits))} of decoded images fit neither into the memory budget nor on "
            f"the disk of {question.cache_dir}"
        )
    return CachePlan(reason=f"{left_out}; the validation images are read once")


def _plan_as_asked(question: CacheQuestion, place: CachePlace) -> CachePlan:
    if question.why_train_changes is not None:
        raise ConfigError(
            f"data.cache is {place}, but no decoded training image can be used twice: {question.why_train_changes}; "
            "use --set data.cache=auto, which keeps the validation images"
        )
    splits: list[SplitName] = ["train", "validation"]
    needed = question.num_bytes(splits)
    if place == "memory" and not _fits_memory(question, splits):
        copies = f" for each of {question.num_workers} workers" if question.num_workers > 1 else ""
        raise ConfigError(
            f"data.cache is memory, but the decoded images take {_gib(needed)}{copies}, and the memory budget is "
            f"{_gib(question.ram_budget_bytes)}; raise data.ram_budget_gib, or use --set data.cache=disk"
        )
    if place == "disk":
        _check_disk(question, splits)
    return _make_plan(question, splits, place, left_out=None)


def _check_disk(question: CacheQuestion, splits: list[SplitName]) -> None:
    directory = _existing(question.cache_dir)
    if not os.access(directory, os.W_OK):
        raise ConfigError(
            f"data.cache is disk, but {directory} cannot be written; name another place with "
            "--set data.cache_dir=DIRECTORY"
        )
    missing, free = _num_missing_bytes(question, splits), shutil.disk_usage(directory).free
    if missing > free:
        raise ConfigError(
            f"data.cache is disk, but the decoded images take {_gib(missing)}, and {directory} has {_gib(free)} free; "
            "name another place with --set data.cache_dir=DIRECTORY, or use --set data.cache=off"
        )


def _find_place(question: CacheQuestion, splits: list[SplitName]) -> CachePlace | None:
    missing, directory = _num_missing_bytes(question, splits), _existing(question.cache_dir)
    if missing == 0:
        return "disk"
    # Processes share a file through the page cache; each would fill a memory of its own.
    if question.num_workers == 1 and _fits_memory(question, splits):
        return "memory"
    if os.access(directory, os.W_OK) and missing <= (1 - _FREE_SHARE_LEFT) * shutil.disk_usage(directory).free:
        return "disk"
    return None


def _fits_memory(question: CacheQuestion, splits: list[SplitName]) -> bool:
    return question.num_workers * question.num_bytes(splits) <= question.ram_budget_bytes


def _num_missing_bytes(question: CacheQuestion, splits: list[SplitName]) -> int:
    """What would have to be written: splits that an earlier run has left on the disk take nothing more."""
    return sum(
        question.num_bytes([split])
        for split in splits
        if not DiskCache(question.cache_dir, question.manifest, split, question.geometry).is_filled()
    )


def _make_plan(question: CacheQuestion, splits: list[SplitName], place: CachePlace, left_out: str | None) -> CachePlan:
    what = " and ".join({"train": "training", "validation": "validation"}[split] for split in splits)
    where = "in memory" if place == "memory" else f"in {question.cache_dir}"
    reason = f"the decoded {what} images take {_gib(question.num_bytes(splits))} {where}"
    if left_out is not None and "train" not in splits:
        reason += f"; not the training images: {left_out}"
    return CachePlan(
        train=place if "train" in splits else "off",
        validation=place if "validation" in splits else "off",
        reason=reason,
        num_bytes=question.num_bytes(splits),
        cache_dir=question.cache_dir if place == "disk" else None,
    )


def _why_not_train(question: CacheQuestion) -> str | None:
    if question.why_train_changes is not None:
        return question.why_train_changes
    return "the training images are read once" if question.num_epochs <= 1 else None


def _existing(directory: pathlib.Path) -> pathlib.Path:
    """The directory, or the nearest above it that exists."""
    return next(path for path in (directory, *directory.parents) if path.is_dir())


def _gib(num: int) -> str:
    return f"{num / _BYTES_PER_GIB:.2f} GiB" if num >= _BYTES_PER_GIB / 100 else f"{num / 2**20:.1f} MiB"
