"""`RUN/plan.json`: everything that "auto" and the machine left open, decided once, before the start.

`trainer launch --dry-run` prints the plan; the run then follows it and nothing else. The plan is nested in
code and flat on disk, where the fields of all its parts stand side by side.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import pydantic

from trainer.config.config import Config
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.storage import DatasetPath
from trainer.data.preparation.command import check_trainable
from trainer.data.sampling.epochs import Epochs
from trainer.data.sampling.order import run_length_warning
from trainer.distribute.topology import Topology
from trainer.features.decision import FeatureInputs, FeaturePlan, plan_features
from trainer.features.find_trunk import find_trunk
from trainer.model.backbones.registry import find_backbone
from trainer.model.head_choice import HeadChoice
from trainer.plan.data_plan import DataPlan, plan_data
from trainer.plan.model_plan import ModelPlan, plan_model
from trainer.plan.replicas_plan import Precision, ReplicasPlan, plan_replicas
from trainer.plan.schedule_plan import SchedulePlan, plan_schedule
from trainer.run.run_dir import RunInfo

SCHEMA_VERSION: Final = 1


class Plan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The resolved plan of a run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    data: DataPlan
    features: FeaturePlan
    model: ModelPlan
    replicas: ReplicasPlan
    schedule: SchedulePlan
    warnings: list[str]

    @pydantic.model_serializer(mode="wrap")
    def _flatten(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in dump(self).items():
            flat |= value if name in _FLAT_PARTS else {name: value}
        return flat

    @pydantic.model_validator(mode="before")
    @classmethod
    def _nest(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Gather the fields of a flat plan into its parts; a nested one has none to gather."""
        nested = dict(fields)
        for part, part_class in _FLAT_PARTS.items():
            if part not in nested:
                nested[part] = {name: nested.pop(name) for name in part_class.model_fields if name in nested}
        return nested

    @property
    def epochs(self) -> Epochs:
        steps = self.schedule
        return Epochs(
            num_examples=self.data.num_train_examples,
            # The one step of a head in closed form takes all positions.
            batch_size=max(self.replicas.global_batch_size, -(-steps.num_positions // steps.num_train_steps)),
            num_train_steps=steps.num_train_steps,
            num_positions=steps.num_positions,
        )

    def identity(self, config: Config) -> str:
        return config.identity(
            dataset_hash=self.data.dataset_hash, precision=self.replicas.precision, head=self.model.head
        )

    def run_info(self, config: Config, name: str) -> RunInfo:
        return RunInfo(
            name=name,
            identity=self.identity(config),
            dataset_dir=self.data.dataset_dir,
            dataset_hash=self.data.dataset_hash,
            class_names=self.data.class_names,
            num_train_examples=self.data.num_train_examples,
            image_size_px=self.model.image_size_px,
            weights=self.model.weights,
            precision=self.replicas.precision,
            batch_norm=self.model.batch_norm,
            task=self.model.task,
            head=self.model.head,
            to_last_layer=self.model.to_last_layer,
        )


_FLAT_PARTS: Final[dict[str, type[pydantic.BaseModel]]] = {
    "data": DataPlan,
    "model": ModelPlan,
    "replicas": ReplicasPlan,
    "schedule": SchedulePlan,
}


def make_plan(
    config: Config,
    dataset_dir: DatasetPath,
    topology: Topology,
    compute_capabilities: Sequence[tuple[int, int]],
    *,
    head_of_run: HeadChoice | None = None,
) -> Plan:
    """Resolve `config` for a prepared dataset and the replicas of `topology`, on GPUs of these compute capabilities.

    `head_of_run` is the choice of head that a run was started with, where one is resumed.

    Raises:
        UsageError: The batch, the dataset, the backbone or its weights do not go together.
    """
    manifest = Manifest.load(dataset_dir)
    check_trainable(manifest, dataset_dir)
    backbone = find_backbone(config.model.backbone, config.model.pixels)
    epochs = Epochs.of(config, manifest.splits["train"].num_examples)
    replicas = plan_replicas(config, topology, compute_capabilities)
    model = plan_model(config, manifest, backbone, head_of_run)
    schedule = plan_schedule(config, epochs, backbone, image_size_px=model.image_size_px)
    features = _plan_features(config, manifest, dataset_dir, topology, model, replicas.precision)
    data = plan_data(
        config,
        manifest,
        dataset_dir,
        topology,
        image_size_px=model.image_size_px,
        has_features=features.is_on,
        num_evaluations=epochs.num_ends,
    )
    return Plan(
        data=data,
        features=features,
        model=model,
        replicas=replicas,
        schedule=schedule,
        warnings=_warnings(data, replicas, schedule, config.data.run_length),
    )


def _plan_features(
    config: Config,
    manifest: Manifest,
    dataset_dir: DatasetPath,
    topology: Topology,
    model: ModelPlan,
    precision: Precision,
) -> FeaturePlan:
    find_trunk_of_run = functools.partial(
        find_trunk,
        config.model.model_dump_json(),
        task=model.task,
        num_classes=manifest.num_classes,
        image_size_px=model.image_size_px,
        trainable=model.trainable,
        batch_norm=model.batch_norm,
        dtype_policy=precision,
        to_last_layer=model.to_last_layer,
    )
    return plan_features(
        FeatureInputs(
            config=config,
            dataset_dir=dataset_dir,
            topology=topology,
            precision=precision,
            num_train=manifest.splits["train"].num_examples,
            num_validation=manifest.splits["validation"].num_examples,
            num_classes=manifest.num_classes,
            find_trunk=find_trunk_of_run,
        )
    )


def _warnings(data: DataPlan, replicas: ReplicasPlan, schedule: SchedulePlan, run_length: int) -> list[str]:
    division, num_steps = replicas.division, schedule.num_train_steps
    warnings = [warning for warning in [run_length_warning(run_length, division)] if warning]
    if not division.is_even:
        filled = division.per_replica_batch_size * division.num_replicas - division.global_batch_size
        warnings.append(
            f"a global batch of {division.global_batch_size} does not divide evenly over {division.num_replicas} "
            f"replicas: {filled} examples of weight zero fill up every step"
        )
    if schedule.warmup_steps >= num_steps:
        warnings.append(
            f"the warm-up of {schedule.warmup_steps} steps is as long as the run of {num_steps}: the learning rate "
            "never reaches its peak"
        )
    if division.global_batch_size > data.num_train_examples:
        warnings.append(
            f"a global batch of {division.global_batch_size} is larger than the {data.num_train_examples} training "
            "images"
        )
    return warnings
