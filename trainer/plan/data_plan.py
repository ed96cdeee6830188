"""The dataset of a run, and where its decoded images are kept."""

import pydantic

from trainer.config.config import Config
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.storage import DatasetPath
from trainer.data.decode.geometry import Geometry
from trainer.data.input.cache_plan import CacheInputs, CachePlan, plan_cache
from trainer.data.input.pixel_cache import CacheLocation
from trainer.distribute.topology import Topology
from trainer.metrics.scores import needed_bytes
from trainer.system.memory import check_fits, find_ram_budget_bytes


class DataPlan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The dataset and the caches of its decoded images. `cache_reason` says why they are where they are."""

    dataset_dir: str
    dataset_name: str
    dataset_hash: str
    class_names: list[str]
    num_train_examples: int
    num_validation_examples: int
    train_cache: CacheLocation
    validation_cache: CacheLocation
    cache_num_bytes: int
    cache_dir: str | None
    cache_reason: str


def plan_data(
    config: Config,
    manifest: Manifest,
    dataset_dir: DatasetPath,
    topology: Topology,
    *,
    image_size_px: int,
    has_features: bool,
    num_evaluations: int,
) -> DataPlan:
    """Decide where decoded images are kept, for a run that evaluates `num_evaluations` times.

    Where `has_features`, the output of the frozen layers is kept instead.

    Raises:
        UsageError: The logits of the validation split do not fit into memory, or the cache that was asked for cannot
            be had.
    """
    num_validation = manifest.splits["validation"].num_examples
    check_fits(
        needed_bytes(num_validation, manifest.num_classes, has_several_labels=manifest.task == "multi_label"),
        f"evaluating the {num_validation:,} validation images on {manifest.num_classes:,} classes",
        "prepare it again with trainer prepare and a smaller --val",
    )
    if has_features and config.data.cache == "auto":
        cache = CachePlan(reason="features are kept, and each image is decoded once")
    else:
        cache = plan_cache(
            CacheInputs(
                config=config.data,
                manifest=manifest,
                dataset_dir=dataset_dir,
                geometry=Geometry(image_size_px=image_size_px, resize=config.data.resize),
                augmentation=resolve_augmentation(config.augment),
                is_size_fixed=config.augment.progressive_sizes_px is None,
                num_epochs=config.train.epochs,
                num_evaluations=num_evaluations,
                num_workers=topology.num_workers,
                ram_budget_bytes=find_ram_budget_bytes(config.data.ram_budget_gib),
            )
        )
    return DataPlan(
        dataset_dir=str(dataset_dir.resolve()),
        dataset_name=manifest.name,
        dataset_hash=manifest.content_hash(),
        class_names=manifest.class_names,
        num_train_examples=manifest.splits["train"].num_examples,
        num_validation_examples=num_validation,
        train_cache=cache.train,
        validation_cache=cache.validation,
        cache_num_bytes=cache.num_bytes,
        cache_dir=str(cache.cache_dir) if cache.cache_dir else None,
        cache_reason=cache.reason,
    )
