"""Resolution of "auto" for task, weights, head, batch normalisation, precision and XLA; contradictions are errors."""

import math
import pathlib
from collections.abc import Sequence
from typing import Literal

from trainer.config.config import Config
from trainer.config.training import ModelTask
from trainer.data.dataset.manifest import Manifest, Task
from trainer.distribute.topology import BatchDivision, Topology
from trainer.errors import ConfigError
from trainer.model.backbones.saved_model import is_own_model
from trainer.model.classifier import BatchNorm
from trainer.model.freezing import is_frozen
from trainer.model.head_choice import OF_NOBODY, HeadChoice, HeadQuestion, choose_head
from trainer.run.checkpoint import find_model_file, load_model_arrays
from trainer.run.run_dir import RunDir
from trainer.system.names import normalize_class_name

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
_BFLOAT16_COMPUTE_CAPABILITY = (8, 0)


def check_task(config: Config, manifest: Manifest) -> ModelTask:
    """The task, which the sampling and the best metric must go with."""
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


def resolve_batch_norm(config: Config, weights: str) -> BatchNorm:
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


def resolve_head(
    config: Config, manifest: Manifest, task: ModelTask, weights: str, image_size_px: int, of_run: HeadChoice | None
) -> HeadChoice:
    """Raises ConfigError or ModelError, see `choose_head`. `weights` are resolved; a run that goes on keeps its own,
    `of_run`, unless the settings ask for one.
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
        HeadQuestion(
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
    """Those of the run that a file of weights is the checkpoint of; None where it is of none."""
    above = pathlib.Path(weights).resolve().parents
    if weights in OF_NOBODY or len(above) < 3:
        return None
    run = RunDir(above[2])
    return run.info().class_names if run.exists() else None


def weights_of_run(weights: str) -> str:
    """Where `weights` is the directory of a run, the file of its best checkpoint."""
    if weights in OF_NOBODY or not pathlib.Path(weights).is_dir():
        return weights
    run = RunDir(weights)
    load_model_arrays(run)  # a damaged one is found now
    return str(find_model_file(run)[0])


def resolve_precision(config: Config, topology: Topology, compute_capabilities: Sequence[tuple[int, int]]) -> Precision:
    """`compute_capabilities`: of the GPUs of all replicas; the oldest decides."""
    if config.distribute.precision != "auto":
        return config.distribute.precision
    if topology.device == "cpu":
        return "float32"
    return "mixed_bfloat16" if min(compute_capabilities) >= _BFLOAT16_COMPUTE_CAPABILITY else "mixed_float16"


def resolve_jit_compile(config: Config, topology: Topology) -> bool:
    if config.model.batch_norm == "synchronized":
        if config.distribute.xla == "on":
            raise ConfigError(
                "model.batch_norm is synchronized, whose statistics cross the network in the middle of the forward "
                "pass, and --xla is on, which cannot do that; use --xla auto, or --set model.batch_norm=per_replica"
            )
        return False
    # On CPUs, XLA's convolutions are several times slower than the kernels that TensorFlow ships.
    return topology.device == "gpu" if config.distribute.xla == "auto" else config.distribute.xla == "on"


def check_accumulation(config: Config, division: BatchDivision) -> None:
    num_parts, size = config.train.accumulate_steps, division.per_replica_batch_size
    if num_parts == 1:
        return
    if num_parts > math.ceil(size / 2):
        raise ConfigError(
            f"train.accumulate_steps is {num_parts}, too many for the {size} examples of a replica, of which each part "
            f"takes at least two; use at most {math.ceil(size / 2)}, or a larger train.global_batch_size"
        )
    if config.model.batch_norm == "synchronized":
        raise ConfigError(
            f"model.batch_norm is synchronized, of the whole batch at once, and train.accumulate_steps {num_parts} "
            "computes it in parts; use --set train.accumulate_steps=1 or --set model.batch_norm=per_replica"
        )


def resolve_task(asked: str, manifest: Manifest) -> ModelTask:
    """Raises ConfigError where the labels of the dataset do not allow the task."""
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
    """The weights of the classes in their order; None for none.

    Raises:
        ConfigError: a class is unknown, or has no training images to be balanced by.
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
