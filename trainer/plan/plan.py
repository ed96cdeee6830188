"""`RUN/plan.json`: everything that "auto" and the machine left open, decided once, before the start.

`trainer launch --dry-run` prints the plan; the run then follows it and nothing else.
"""

from collections.abc import Sequence
from typing import Final, Literal

import pydantic

from trainer.config.config import Config
from trainer.config.training import ModelTask
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.storage import DatasetPath
from trainer.data.decode.geometry import Geometry
from trainer.data.input.cache_plan import CachePlan, CacheQuestion, plan_cache
from trainer.data.input.pixel_cache import CachePlace
from trainer.data.preparation.command import check_trainable
from trainer.data.sampling.epochs import Epochs
from trainer.data.sampling.order import check_run_length, run_length_warning
from trainer.distribute.topology import BatchDivision, Device, Strategy, Topology, divide_batch
from trainer.features.decision import FeaturePlan, FeatureQuestion, TrunkFacts, plan_features
from trainer.features.find_trunk import find_trunk
from trainer.metrics.scores import needed_bytes
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.registry import find_backbone
from trainer.model.classifier import BatchNorm, resolve_weights
from trainer.model.head_choice import Head, HeadChoice
from trainer.plan.resolve import (
    Precision,
    check_accumulation,
    check_task,
    resolve_batch_norm,
    resolve_class_weights,
    resolve_head,
    resolve_jit_compile,
    resolve_precision,
    weights_of_run,
)
from trainer.plan.stages import Stage, plan_stages
from trainer.run.run_dir import RunInfo
from trainer.step.schedule import Schedule
from trainer.system.memory import check_fits, find_ram_budget_bytes

SCHEMA_VERSION: Final = 1


class Plan(pydantic.BaseModel):
    """What a run will do, as resolved."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    # Data.
    dataset_dir: str
    dataset_name: str
    dataset_hash: str
    class_names: list[str]
    num_train_examples: int
    num_validation_examples: int
    # Decoded images that are kept, and why there or not.
    train_cache: CachePlace
    validation_cache: CachePlace
    cache_num_bytes: int
    cache_dir: str | None
    cache_reason: str
    # What the frozen layers give, computed once.
    features: FeaturePlan
    # Model.
    backbone: str
    weights: str
    image_size_px: int
    trainable: str
    batch_norm: BatchNorm
    task: ModelTask
    head: Head = "replace"
    to_last_layer: bool = False
    head_reason: str = ""
    class_weights: list[float] | None
    # Replicas.
    strategy: Strategy
    device: Device
    num_workers: int
    num_replicas: int
    precision: Precision
    jit_compile: bool
    # Arithmetic.
    global_batch_size: int
    per_replica_batch_size: int
    replica_slices: list[tuple[int, int]]
    steps_per_epoch: float
    num_train_steps: int
    num_positions: int
    # Of the learning rate.
    peak_learning_rate: float
    warmup_steps: int
    stages: list[Stage]
    # Beside the ends of epochs; null: then alone.
    checkpoint_every_steps: int | None
    warnings: list[str]

    @property
    def epochs(self) -> Epochs:
        return Epochs(
            num_examples=self.num_train_examples,
            # The one step of a head in closed form takes all positions.
            batch_size=max(self.global_batch_size, -(-self.num_positions // self.num_train_steps)),
            num_train_steps=self.num_train_steps,
            num_positions=self.num_positions,
        )

    def identity(self, config: Config) -> str:
        return config.identity(dataset_hash=self.dataset_hash, precision=self.precision, head=self.head)

    def run_info(self, config: Config, name: str) -> RunInfo:
        return RunInfo(
            name=name,
            identity=self.identity(config),
            dataset_dir=self.dataset_dir,
            dataset_hash=self.dataset_hash,
            class_names=self.class_names,
            num_train_examples=self.num_train_examples,
            image_size_px=self.image_size_px,
            weights=self.weights,
            precision=self.precision,
            batch_norm=self.batch_norm,
            task=self.task,
            head=self.head,
            to_last_layer=self.to_last_layer,
        )


def make_plan(
    config: Config,
    dataset_dir: DatasetPath,
    topology: Topology,
    compute_capabilities: Sequence[tuple[int, int]],
    *,
    head_of_run: HeadChoice | None = None,
) -> Plan:
    """Resolves `config` for a prepared dataset and the replicas of `topology`, on GPUs of these compute capabilities.

    `head_of_run` is what the last layer of a run that goes on started from.

    Raises:
        UsageError: the batch, the dataset, the backbone or its weights do not go together.
    """
    manifest = Manifest.load(dataset_dir)
    task, num_train = check_task(config, manifest), _num_examples(manifest, "train", dataset_dir)
    check_run_length(config.data.run_length, sampling=config.data.sampling, num_examples=num_train)
    backbone = find_backbone(config.model.backbone, config.model.pixels)
    weights = weights_of_run(resolve_weights(config.model.weights, backbone))
    division = divide_batch(config.distribute, config.train.global_batch_size, topology.num_replicas)
    check_accumulation(config, division)
    epochs = Epochs.of(config, num_train)
    schedule = Schedule.of(config, num_train_steps=epochs.num_train_steps, epochs=epochs)
    image_size_px = config.model.image_size_px or backbone.image_size_px
    batch_norm = resolve_batch_norm(config, weights)
    precision = resolve_precision(config, topology, compute_capabilities)
    head = resolve_head(config, manifest, task, weights, image_size_px, head_of_run)
    features = _plan_features(config, manifest, dataset_dir, topology, image_size_px, task, batch_norm, precision, head)
    class_weights = resolve_class_weights(config, task, manifest)
    _check_memory(manifest, _num_examples(manifest, "validation", dataset_dir))
    cache = _plan_cache(config, manifest, dataset_dir, topology, image_size_px, features, epochs.num_ends)
    return Plan(
        dataset_dir=str(dataset_dir.resolve()),
        dataset_name=manifest.name,
        dataset_hash=manifest.content_hash(),
        class_names=manifest.class_names,
        num_train_examples=num_train,
        num_validation_examples=_num_examples(manifest, "validation", dataset_dir),
        train_cache=cache.train,
        validation_cache=cache.validation,
        cache_num_bytes=cache.num_bytes,
        cache_dir=str(cache.cache_dir) if cache.cache_dir else None,
        cache_reason=cache.reason,
        features=features,
        backbone=backbone.name,
        weights=weights,
        image_size_px=image_size_px,
        trainable=config.model.trainable,
        batch_norm=batch_norm,
        task=task,
        head=head.head,
        to_last_layer=head.to_last_layer,
        head_reason=head.reason,
        class_weights=class_weights,
        strategy=topology.strategy,
        device=topology.device,
        num_workers=topology.num_workers,
        num_replicas=topology.num_replicas,
        precision=precision,
        jit_compile=resolve_jit_compile(config, topology),
        global_batch_size=config.train.global_batch_size,
        per_replica_batch_size=division.per_replica_batch_size,
        replica_slices=[division.slice_of(r) for r in range(topology.num_replicas)],
        steps_per_epoch=num_train / epochs.batch_size,
        num_train_steps=epochs.num_train_steps,
        num_positions=epochs.num_positions,
        peak_learning_rate=schedule.peak,
        warmup_steps=schedule.warmup_steps,
        stages=_plan_stages(config, backbone, epochs, image_size_px),
        checkpoint_every_steps=config.checkpoint.every_steps,
        warnings=_warnings(division, num_train, config.data.run_length, schedule),
    )


def _plan_stages(config: Config, backbone: Backbone, epochs: Epochs, image_size_px: int) -> list[Stage]:
    return plan_stages(
        config.augment.progressive_sizes_px,
        config.train,
        trainable=config.model.trainable,
        epochs=epochs,
        image_size_px=image_size_px,
        min_image_size_px=backbone.min_image_size_px,
        backbone=backbone.name,
    )


def _check_memory(manifest: Manifest, num_validation: int) -> None:
    """Raises UsageError where the logits of the validation split do not fit into memory."""
    check_fits(
        needed_bytes(num_validation, manifest.num_classes, has_several_labels=manifest.task == "multi_label"),
        f"evaluating the {num_validation:,} validation images on {manifest.num_classes:,} classes",
        "prepare it again with trainer prepare and a smaller --val",
    )


def _plan_features(
    config: Config,
    manifest: Manifest,
    dataset_dir: DatasetPath,
    topology: Topology,
    image_size_px: int,
    task: ModelTask,
    batch_norm: BatchNorm,
    precision: Precision,
    head: HeadChoice,
) -> FeaturePlan:
    def find_trunk_of_run() -> TrunkFacts | None:
        return find_trunk(
            config.model.model_dump_json(),
            task=task,
            num_classes=manifest.num_classes,
            image_size_px=image_size_px,
            trainable=config.model.trainable,
            batch_norm=batch_norm,
            dtype_policy=precision,
            to_last_layer=head.to_last_layer,
        )

    return plan_features(
        FeatureQuestion(
            config=config,
            dataset_dir=dataset_dir,
            topology=topology,
            precision=precision,
            num_train=_num_examples(manifest, "train", dataset_dir),
            num_validation=_num_examples(manifest, "validation", dataset_dir),
            num_classes=manifest.num_classes,
            find_trunk=find_trunk_of_run,
        )
    )


def _plan_cache(
    config: Config,
    manifest: Manifest,
    dataset_dir: DatasetPath,
    topology: Topology,
    image_size_px: int,
    features: FeaturePlan,
    num_evaluations: int,
) -> CachePlan:
    if features.is_on and config.data.cache == "auto":
        return CachePlan(reason="features are kept, and each image is decoded once")
    return plan_cache(
        CacheQuestion(
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


def _num_examples(manifest: Manifest, split: Literal["train", "validation"], dataset_dir: DatasetPath) -> int:
    num_examples = manifest.splits[split].num_examples if split in manifest.splits else 0
    if num_examples == 0:
        check_trainable(manifest, dataset_dir)
    return num_examples


def _warnings(division: BatchDivision, num_train: int, run_length: int, schedule: Schedule) -> list[str]:
    warnings = [warning for warning in [run_length_warning(run_length, division)] if warning]
    if not division.is_even:
        filled = division.per_replica_batch_size * division.num_replicas - division.global_batch_size
        warnings.append(
            f"a global batch of {division.global_batch_size} does not divide evenly over {division.num_replicas} "
            f"replicas: {filled} examples of weight zero fill up every step"
        )
    if schedule.warmup_steps >= schedule.num_train_steps:
        warnings.append(
            f"the warm-up of {schedule.warmup_steps} steps is as long as the run of {schedule.num_train_steps}: the "
            "learning rate never reaches its peak"
        )
    if division.global_batch_size > num_train:
        warnings.append(
            f"a global batch of {division.global_batch_size} is larger than the {num_train} training images"
        )
    return warnings
