"""Decide before a run starts whether its features are computed once, where they are stored and by which runtime.

They are if the first layers of the network are a fixed function of an image, and every epoch has the same images or a
fixed number of views of them. Otherwise the plan has the reason.
"""

import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Callable

import pydantic

from trainer.config.config import Config
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.dataset.derived import FEATURES_SUFFIX
from trainer.data.dataset.storage import DatasetPath, derived_directory
from trainer.distribute.topology import Topology
from trainer.errors import ConfigError
from trainer.features.ridge_path import needed_bytes
from trainer.features.runtimes import Runtime
from trainer.features.store import num_bytes
from trainer.system.disk import BYTES_PER_GIB, FREE_SHARE_LEFT, format_size, nearest_directory
from trainer.system.memory import check_fits

_NAMES = {"tensorflow": "TensorFlow", "onnxruntime": "ONNX Runtime", "litert": "LiteRT"}


class FeaturePlan(pydantic.BaseModel):
    """The features of a run, a part of `RUN/plan.json`.

    Attributes:
        layer: The layer whose output is stored; None for no features, where only `reason` has a meaning.
        shape: The shape of the features of one image.
        runtime: The runtime that computes them.
        fallbacks: Runtimes to try, with a warning, if `runtime` gives other numbers than Keras.
        num_views: Randomly changed views of each training image.
        num_bytes: The size of all features of the run.
        dir: The directory of the store.
        reason: A sentence for people.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    layer: str | None = None
    shape: list[int] = []
    runtime: Runtime | None = None
    fallbacks: list[Runtime] = []
    num_views: int = 1
    num_bytes: int = 0
    dir: str | None = None
    reason: str

    @property
    def is_on(self) -> bool:
        return self.layer is not None


@dataclasses.dataclass(frozen=True)
class TrunkFacts:
    """The frozen part of a network: its last layer, the shape of its features of an image, and what follows.

    `is_tail_linear` says whether a single dense layer follows.
    """

    layer: str
    shape: tuple[int, ...]
    is_tail_linear: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureInputs:
    """Everything that the decision depends on. `find_trunk`, which takes seconds, is called last."""

    config: Config
    dataset_dir: DatasetPath
    topology: Topology
    precision: str
    num_train: int
    num_validation: int
    num_classes: int
    find_trunk: Callable[[], TrunkFacts | None]

    @property
    def num_views(self) -> int:
        return self.config.features.views or 1

    @property
    def directory(self) -> pathlib.Path:
        return derived_directory(self.dataset_dir, FEATURES_SUFFIX, setting=self.config.features.dir)


def plan_features(inputs: FeatureInputs) -> FeaturePlan:
    """Decide about the features of a run.

    Raises:
        ConfigError: Features were asked for by `features.cache`, `features.views` or `train.solver`, and would change
            the result or cannot be computed or stored.
    """
    settings = inputs.config.features
    _check_views(inputs)
    is_ridge = inputs.config.train.solver == "ridge"
    if is_ridge:
        _check_ridge(inputs.config)
    if settings.cache == "off":
        return FeaturePlan(reason="features.cache is off")
    obstacle = _find_obstacle(inputs)
    trunk = None if obstacle else inputs.find_trunk()
    if obstacle is None and trunk is None:
        obstacle = _Obstacle(
            "no layers with weights lie frozen and free of batch statistics and dropout before all that is trained",
            "use --set model.trainable=head",
        )
    if trunk is not None and is_ridge and not trunk.is_tail_linear:
        obstacle = _Obstacle(
            "more than one dense layer without dropout follows the frozen ones",
            "use --set model.trainable=head --set model.dropout=0",
        )
    if obstacle is not None:
        if settings.cache == "on" or settings.views is not None or is_ridge:
            asked = "features.cache is on" if settings.cache == "on" else f"features.views is {settings.views}"
            asked = "train.solver is ridge" if is_ridge else asked
            raise ConfigError(f"{asked}, but {obstacle.reason}; {obstacle.fix}, or leave features to auto")
        return FeaturePlan(reason=obstacle.reason)
    assert trunk is not None, "there is no obstacle"
    if is_ridge:
        _check_memory(inputs, math.prod(trunk.shape))
    if settings.cache == "auto" and settings.views is None and not is_ridge and inputs.config.train.epochs <= 1:
        return FeaturePlan(reason="no training image is read twice, so that features would save nothing")
    return _plan_storage(inputs, trunk)


@dataclasses.dataclass(frozen=True)
class _Obstacle:
    reason: str
    fix: str


def _check_views(inputs: FeatureInputs) -> None:
    settings = inputs.config.features
    augmentation = resolve_augmentation(inputs.config.augment)
    if settings.views is None:
        return
    if settings.cache == "off":
        raise ConfigError(
            f"features.views is {settings.views}, but features.cache is off, so that no view is kept; leave one of "
            "them out"
        )
    if not (augmentation.crops or augmentation.changes_on_device):
        raise ConfigError(
            f"features.views is {settings.views}, but no random change of the images is asked for, and all views would "
            "be the same; leave it out, or use --set augment.preset=light"
        )


def _check_ridge(config: Config) -> None:
    if config.features.cache == "off":
        raise ConfigError(
            "train.solver is ridge, which solves on features, but features.cache is off; leave one of them out"
        )
    if config.data.sampling != "uniform":
        raise ConfigError(
            f"train.solver is ridge, which takes every image once, but data.sampling is {config.data.sampling}; use "
            "--set data.sampling=uniform or --set train.solver=gradient"
        )
    ignored = {
        "train.loss": (config.train.loss, "cross_entropy"),
        "train.label_smoothing": (config.train.label_smoothing, 0.0),
        "train.class_weights": (config.train.class_weights, "none"),
    }
    for name, (value, default) in ignored.items():
        if value != default:
            raise ConfigError(
                f"train.solver is ridge, which minimises squared errors, but {name} is {value}; use --set "
                f"{name}={default} or --set train.solver=gradient"
            )


def _check_memory(inputs: FeatureInputs, num_features: int) -> None:
    check_fits(
        needed_bytes(inputs.num_train * inputs.num_views, num_features, inputs.num_classes),
        f"train.solver is ridge, which for {num_features} features and {inputs.num_classes} classes",
        "use --set train.solver=gradient",
    )


def _find_obstacle(inputs: FeatureInputs) -> _Obstacle | None:
    """Return what in the configuration makes the features of an image differ from visit to visit."""
    config = inputs.config
    augmentation = resolve_augmentation(config.augment)
    if augmentation.mixes:
        return _Obstacle(
            "mixup and CutMix mix the pixels of images anew each time",
            "use --set augment.mixup_alpha=0 --set augment.cutmix_alpha=0",
        )
    if config.augment.progressive_sizes_px is not None:
        return _Obstacle(
            "progressive resizing changes the size of the images", "leave augment.progressive_sizes_px out"
        )
    if config.features.views is None and (augmentation.crops or augmentation.changes_on_device):
        return _Obstacle(
            "the training images are changed at random at each visit",
            "use --set augment.preset=none, or keep a number of views with --set features.views=4",
        )
    if config.distribute.min_replicas is not None or config.distribute.max_replicas is not None:
        return _Obstacle("workers of an elastic job come and go while features would be computed", "use fixed replicas")
    if config.train.unfreeze:
        return _Obstacle("train.unfreeze trains more layers as the run goes on", "leave train.unfreeze out")
    if config.model.trainable == "all":
        return _Obstacle("every layer is trained (model.trainable is all)", "use --set model.trainable=head")
    return None


def _plan_storage(inputs: FeatureInputs, trunk: TrunkFacts) -> FeaturePlan:
    settings, directory = inputs.config.features, inputs.directory
    num_rows = inputs.num_train * inputs.num_views + inputs.num_validation
    needed = num_bytes((num_rows, *trunk.shape))
    budget = int(settings.budget_gib * BYTES_PER_GIB)
    existing = nearest_directory(directory)
    # The directory may already hold these features, or older ones that will be removed.
    free = shutil.disk_usage(existing).free + min(_bytes_in(directory), needed)
    free = free if settings.cache == "on" else math.floor(free * (1 - FREE_SHARE_LEFT))
    obstacle = None
    if needed > budget:
        obstacle = f"the features take {format_size(needed)}, over the features.budget_gib of {settings.budget_gib:g}"
    elif not os.access(existing, os.W_OK):
        obstacle = f"{existing} cannot be written"
    elif needed > free:
        obstacle = (
            f"the features take {format_size(needed)}, and the disk of {existing} has {format_size(free)} for them"
        )
    if obstacle is not None:
        if settings.cache == "on" or inputs.config.train.solver == "ridge":
            raise ConfigError(
                f"features are asked for, but {obstacle}; raise features.budget_gib, name another place with "
                "--set features.dir=DIRECTORY, or leave features to auto"
            )
        return FeaturePlan(reason=obstacle)
    runtime, *fallbacks = _runtimes(inputs)
    numbers = " x ".join(map(str, trunk.shape))
    views = f"{inputs.num_views} views of " if inputs.num_views > 1 else ""
    return FeaturePlan(
        layer=trunk.layer,
        shape=list(trunk.shape),
        runtime=runtime,
        fallbacks=fallbacks,
        num_views=inputs.num_views,
        num_bytes=needed,
        dir=str(directory),
        reason=f"what the frozen layers up to {trunk.layer} give ({numbers} numbers) of {views}each image is computed "
        f"once, by {_NAMES[runtime]}, and takes {format_size(needed)} in {directory}",
    )


def _runtimes(inputs: FeatureInputs) -> list[Runtime]:
    """Return the runtime to use, and those to try next if it gives other numbers than Keras."""
    asked = inputs.config.features.runtime
    if asked != "auto":
        return [asked]
    # The others compute in float32 on the processor. LiteRT runs about as fast as ONNX Runtime and takes seconds to
    # convert for.
    if inputs.topology.device == "gpu" or inputs.precision != "float32":
        return ["tensorflow"]
    return ["onnxruntime", "litert", "tensorflow"]


def _bytes_in(directory: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*/*") if path.is_file())
