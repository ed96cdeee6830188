"""The network of a run: task, weights, head and batch normalisation; settings that contradict each other are errors."""

import pathlib

import pydantic

from trainer.config.config import Config
from trainer.config.training import ModelTask
from trainer.data.dataset.manifest import Manifest, Task
from trainer.errors import ConfigError
from trainer.model.backbones.backbone import Backbone
from trainer.model.backbones.saved_model import is_own_model
from trainer.model.classifier import BatchNorm, resolve_weights
from trainer.model.freezing import is_frozen
from trainer.model.head_choice import OF_NOBODY, Head, HeadChoice, HeadInputs, choose_head
from trainer.run.checkpoint_store import find_model_file, load_model_arrays
from trainer.run.run_dir import RunDir
from trainer.system.names import normalize_class_name


class ModelPlan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The network and its task. `trainable` is that of the start; stages may train more, see `SchedulePlan.stages`."""

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


def plan_model(config: Config, manifest: Manifest, backbone: Backbone, head_of_run: HeadChoice | None) -> ModelPlan:
    """Resolve everything about the network that the settings leave open.

    `head_of_run` is the choice of head that a run was started with, where one is resumed.

    Raises:
        ConfigError, ModelError: Settings, dataset and weights do not go together.
    """
    task = _check_task(config, manifest)
    weights = _weights_of_run(resolve_weights(config.model.weights, backbone))
    image_size_px = config.model.image_size_px or backbone.image_size_px
    batch_norm = _resolve_batch_norm(config, weights)
    head = _resolve_head(config, manifest, task, weights, image_size_px, head_of_run)
    return ModelPlan(
        backbone=backbone.name,
        weights=weights,
        image_size_px=image_size_px,
        trainable=config.model.trainable,
        batch_norm=batch_norm,
        task=task,
        head=head.head,
        to_last_layer=head.to_last_layer,
        head_reason=head.reason,
        class_weights=resolve_class_weights(config, task, manifest),
    )


def _check_task(config: Config, manifest: Manifest) -> ModelTask:
    """Return the task; raise ConfigError where the sampling, the solver or the best metric does not go with it."""
    task = resolve_task(config.train.task, manifest)
    if config.data.sampling == "class_balanced" and manifest.task == "multi_label":
        raise ConfigError(
            f"data.sampling is class_balanced, and images of the dataset {manifest.name} have several labels, so that "
            "no order shows all classes equally often; use --set train.class_weights=balanced"
        )
    if config.train.solver == "ridge" and task != "single_label":
        raise ConfigError(
            f"train.solver is ridge, which solves for one class an image, and this is a {task} model; use --set "
            "train.solver=gradient"
        )
    metric = config.checkpoint.best_metric
    tasks = {"average_precision": ("binary", "multi_label"), "roc_auc": ("binary",)}
    if metric in tasks and task not in tasks[metric]:
        raise ConfigError(
            f"checkpoint.best_metric is {metric}, which is one of {' and '.join(tasks[metric])} models, and this is a "
            f"{task} one; use accuracy, macro_f1 or loss"
        )
    return task


def _resolve_batch_norm(config: Config, weights: str) -> BatchNorm:
    last = config.train.unfreeze[-1].trainable if config.train.unfreeze else config.model.trainable
    if config.model.batch_norm == "auto":
        # A short fine-tuning never gives the moving averages time to follow the batches: pretrained statistics are
        # kept. Without pretrained weights there are none to keep.
        return "per_replica" if weights == "none" and not is_frozen(last) else "frozen"
    if config.model.batch_norm != "frozen" and is_frozen(last) and not config.model.hidden_batch_norm:
        raise ConfigError(
            f"model.batch_norm is {config.model.batch_norm}, but model.trainable is head: a frozen backbone keeps its "
            "statistics; use --set model.batch_norm=frozen or --set model.trainable=all"
        )
    return config.model.batch_norm


def _resolve_head(
    config: Config, manifest: Manifest, task: ModelTask, weights: str, image_size_px: int, of_run: HeadChoice | None
) -> HeadChoice:
    """Choose the head. A run that goes on keeps its own, `of_run`, unless the settings ask for one.

    Raises:
        ConfigError, ModelError: See `choose_head`.
    """
    if of_run is not None and config.model.head == "auto":
        starts_from_file = is_own_model(config.model.backbone) or weights not in OF_NOBODY
        kept = "kept" if of_run.head == "keep" else "new"
        return of_run._replace(reason=f"the last layer is {kept}, as when the run began" if starts_from_file else "")
    obstacle = None
    if config.train.solver == "ridge":
        obstacle = "train.solver is ridge, which solves for a new one"
    elif config.augment.progressive_sizes_px is not None and is_own_model(config.model.backbone):
        obstacle = "augment.progressive_sizes_px changes the size of the images"
    return choose_head(
        HeadInputs(
            config=config.model,
            weights=weights,
            task=task,
            class_names=manifest.class_names,
            class_names_of_weights=_class_names_of(weights),
            image_size_px=image_size_px,
            obstacle=obstacle,
        )
    )


def _class_names_of(weights: str) -> list[str] | None:
    """Return the class names of the run that `weights` is a checkpoint of; None where it is of none."""
    above = pathlib.Path(weights).resolve().parents
    if weights in OF_NOBODY or len(above) < 3:
        return None
    run = RunDir(above[2])
    return run.info().class_names if run.exists() else None


def _weights_of_run(weights: str) -> str:
    """Return the file of the best checkpoint where `weights` is a run directory, and `weights` otherwise."""
    if weights in OF_NOBODY or not pathlib.Path(weights).is_dir():
        return weights
    run = RunDir(weights)
    load_model_arrays(run)  # a damaged one is found now
    return str(find_model_file(run)[0])


def resolve_task(asked: str, manifest: Manifest) -> ModelTask:
    """Return the task that is asked for; raise ConfigError where the labels of the dataset do not allow it."""
    of_dataset: Task = manifest.task
    if asked == "auto":
        return of_dataset
    if of_dataset == "multi_label" and asked != "multi_label":
        raise ConfigError(
            f"train.task is {asked}, and images of the dataset {manifest.name} have several labels; use --set "
            "train.task=multi_label, or prepare it with one label for every image"
        )
    if asked == "multi_label" and of_dataset == "single_label":
        raise ConfigError(
            f"train.task is multi_label, and every image of the dataset {manifest.name} has one label; prepare it from "
            "a JSONL or CSV file with several, or use --set train.task=single_label"
        )
    if asked == "binary" and manifest.num_classes != 2:
        raise ConfigError(
            f"train.task is binary, and the dataset {manifest.name} has {manifest.num_classes} classes, not two; use "
            "--set train.task=single_label"
        )
    return asked  # type: ignore[return-value]


def resolve_class_weights(config: Config, task: ModelTask, manifest: Manifest) -> list[float] | None:
    """Return the weights of the classes in their order; None for none.

    Raises:
        ConfigError: A class is unknown, or has no training images to be balanced by.
    """
    asked, names = config.train.class_weights, manifest.class_names
    if asked == "none":
        return None
    if isinstance(asked, dict):
        asked = {normalize_class_name(name): weight for name, weight in asked.items()}
        if unknown := sorted(set(asked) - set(names)):
            raise ConfigError(
                f"train.class_weights names the class {unknown[0]!r}, which the dataset does not have; its classes are "
                f"{', '.join(names[:10])}{' ...' if len(names) > 10 else ''}"
            )
        return [asked.get(name, 1.0) for name in names]
    split = manifest.splits["train"]
    if missing := [name for name, count in zip(names, split.class_counts, strict=True) if count == 0]:
        raise ConfigError(
            f"train.class_weights is balanced, and the class {missing[0]!r} has no training images; leave it out with "
            "trainer prepare --exclude, or give the weights by name"
        )
    if task == "multi_label":
        return [(split.num_examples - count) / count or 1.0 for count in split.class_counts]
    return [split.num_examples / (len(names) * count) for count in split.class_counts]
