"""The configuration of a run: every setting, its default, its range, and how a recipe and `--set` change it.

A recipe is a YAML file that states only what differs from these defaults; `--set section.key=value` changes
one setting, its value read as YAML. What a run used is written out in full as `RUN/config.yaml`.
"""

import difflib
import hashlib
import json
import pathlib
import re
from typing import Annotated, Any, Literal

import pydantic
import yaml

from trainer.errors import ConfigError

Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[int, pydantic.Field(ge=0)]
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(_Section):
    """What is read, and how an image becomes the model's input."""

    path: str | None = pydantic.Field(None, description="prepared dataset, or a folder with one folder per class")
    resize: Literal["crop", "squash"] = pydantic.Field(
        "crop", description="crop: the largest centred square, then resized; squash: the whole image, resized"
    )
    sampling: Literal["uniform", "class_balanced", "weighted"] = pydantic.Field(
        "uniform",
        description="uniform: every example once an epoch; class_balanced: every class equally often; weighted: in "
        "proportion to the weights of the examples",
    )
    run_length: Positive = pydantic.Field(
        1, description="shuffle runs of so many neighbouring records, for storage that wants long reads"
    )
    last_batch: Literal["mask", "drop"] = pydantic.Field(
        "mask", description="mask: fill the last training batch up with examples of weight zero; drop: leave it out"
    )
    scaled_decoding: bool = pydantic.Field(
        True, description="decode random training crops of large JPEGs at 1/2, 1/4 or 1/8 of the size"
    )
    cache: Literal["auto", "off", "memory", "disk"] = pydantic.Field(
        "auto",
        description="keep decoded and resized images; auto: where no random crop makes each one new, in memory or on "
        "disk as they fit",
    )
    cache_dir: str | None = pydantic.Field(None, description="for cache=disk; null: beside the dataset")
    ram_budget_gib: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None, description="for the input pipeline and its cache; null: half of what is free at the start"
    )
    num_parallel_reads: NonNegative = pydantic.Field(0, description="threads of the input pipeline; 0: all cores")

    @pydantic.field_validator("cache", mode="before")
    @classmethod
    def _accept_yaml_off(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare off as a boolean.
        return "off" if value is False else value


class ModelConfig(_Section):
    """The network: a backbone, what is trained of it, and the head on top."""

    backbone: str = pydantic.Field("efficientnet_lite0", description="name of a backbone; see the README for the list")
    weights: str = pydantic.Field(
        "auto", description="bundled, imagenet, none, a weight file, or auto: bundled where the backbone has them"
    )
    image_size_px: Annotated[int, pydantic.Field(ge=8, le=2048)] | None = pydantic.Field(
        None, description="side of the square input; null: the backbone's own"
    )
    trainable: Literal["all", "head"] = pydantic.Field("all", description="all: fine-tune; head: frozen backbone")
    batch_norm: Literal["auto", "frozen", "per_replica", "synchronized"] = pydantic.Field(
        "auto",
        description="frozen: the statistics of the weights, inference mode; per_replica: of each replica's batch, "
        "averaged over the replicas; synchronized: of the whole global batch, without XLA; auto: frozen for pretrained "
        "weights, per_replica without",
    )
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = pydantic.Field(0.0, description="before the head")


class TrainConfig(_Section):
    """How long, and on how large a batch."""

    epochs: Annotated[float, pydantic.Field(gt=0)] = 10.0
    global_batch_size: Positive = pydantic.Field(64, description="over all replicas; each takes its slice")
    accumulate_steps: Positive = pydantic.Field(
        1, description="parts that a replica's share of the batch is computed in, one after the other, to save memory"
    )
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = pydantic.Field(
        None,
        description="keep an exponential moving average of the weights and of the batch-norm statistics, as in 0.999; "
        "it is what is evaluated and exported",
    )
    seed: NonNegative = 0
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    max_skipped_steps: Positive = pydantic.Field(
        20, description="this many steps in a row with a non-finite gradient stop the run"
    )


class OptimizerConfig(_Section):
    """The update rule and the schedule of its learning rate."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        1e-3, description="at its peak; with a scaling, that of scaling_batch_size"
    )
    scaling: Literal["none", "linear", "sqrt"] = pydantic.Field(
        "none", description="of the learning rate with train.global_batch_size over scaling_batch_size"
    )
    scaling_batch_size: Positive = 256
    momentum: Annotated[float, pydantic.Field(ge=0, lt=1)] = pydantic.Field(0.9, description="sgd only")
    weight_decay: Annotated[float, pydantic.Field(ge=0)] | None = pydantic.Field(
        None,
        description="kernels only; decoupled for adamw, added to the gradient otherwise; null: 1e-4 for adamw, else 0",
    )
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: NonNegative = pydantic.Field(0, description="over which the learning rate rises to its peak")
    warmup_epochs: Annotated[float, pydantic.Field(ge=0)] = pydantic.Field(0.0, description="the same, in epochs")
    clip_norm: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None, description="global norm of the reduced gradient"
    )


class AugmentConfig(_Section):
    """Random changes of training images, keyed by (seed, epoch, example). A preset sets what is null."""

    preset: Literal["none", "light", "medium", "strong"] = pydantic.Field(
        "none", description="light: a mild random crop; medium, strong: see the README for what each sets"
    )
    min_crop_area: Annotated[float, pydantic.Field(gt=0, le=1)] | None = pydantic.Field(
        None, description="least share of the area that a random crop keeps; 1: no random crop"
    )
    flip: bool | None = pydantic.Field(None, description="mirror left and right at random")
    color_jitter: Annotated[float, pydantic.Field(ge=0, le=1)] | None = pydantic.Field(
        None, description="strength of random brightness, contrast and saturation; 0: none"
    )
    randaugment_layers: Annotated[int, pydantic.Field(ge=0, le=4)] | None = pydantic.Field(
        None, description="random operations on each image, one after the other"
    )
    randaugment_magnitude: Annotated[float, pydantic.Field(ge=0, le=10)] | None = None
    erasing: Annotated[float, pydantic.Field(ge=0, le=1)] | None = pydantic.Field(
        None, description="probability that a random rectangle is painted over"
    )
    mixup_alpha: Annotated[float, pydantic.Field(ge=0)] | None = pydantic.Field(
        None, description="mixup: parameter of its Beta distribution; 0: none"
    )
    cutmix_alpha: Annotated[float, pydantic.Field(ge=0)] | None = pydantic.Field(
        None, description="CutMix: parameter of its Beta distribution; 0: none; with mixup, each pair gets one of them"
    )
    progressive_sizes_px: list[Annotated[int, pydantic.Field(ge=8, le=2048)]] | None = pydantic.Field(
        None, description="sides of the training images, over equal parts of the run; the last is the model's"
    )


class DistributeConfig(_Section):
    """Devices and replicas, precision and compilation."""

    strategy: Literal["auto", "single", "mirrored", "multiworker", "horovod"] = "auto"
    device: Literal["auto", "gpu", "cpu"] = "auto"
    gpus: Positive | None = pydantic.Field(None, description="null: all there are")
    replicas: Positive | None = pydantic.Field(None, description="on the CPU: how many; null: one")
    hosts: str | None = pydantic.Field(None, description="machines and how many workers each takes, as in a:8,b:8")
    ssh_options: list[str] = pydantic.Field([], description="given to ssh before the name of a host, such as -p2222")
    start_timeout_secs: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        30.0, description="for each of the hosts to answer"
    )
    stall_timeout_secs: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        600.0, description="a job of several workers without a step for so long is ended; null: never"
    )
    host_timeout_secs: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        30.0, description="another host that does not answer for so long is given up, and so is the launcher by it"
    )
    min_replicas: Positive | None = pydantic.Field(
        None, description="an elastic job (horovod) goes on with no fewer than these"
    )
    max_replicas: Positive | None = pydantic.Field(None, description="an elastic job takes no more than these")
    host_discovery_script: str | None = pydantic.Field(
        None, description="prints the hosts that an elastic job may use now, a line each, as in a:8"
    )
    compression: Literal["none", "float16"] = pydantic.Field(
        "none", description="float16: gradients cross the network in half the bytes, rounded"
    )
    fusion_mib: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None,
        description="gradients are reduced in packs of about so much; null: what TensorFlow or Horovod does by itself",
    )
    cycle_time_ms: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None, description="horovod: how long it waits for more tensors to send together; null: its own 1 ms"
    )
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = pydantic.Field(
        "auto", description="auto: mixed_bfloat16 on GPUs that have it, mixed_float16 on older ones, float32 on CPUs"
    )
    xla: Literal["auto", "on", "off"] = pydantic.Field("auto", description="auto: on for GPUs, off for CPUs")
    strict_batch: bool = pydantic.Field(False, description="a batch that the replicas do not divide is an error")

    @property
    def fusion_bytes(self) -> int | None:
        return None if self.fusion_mib is None else int(self.fusion_mib * 2**20)

    @pydantic.field_validator("xla", mode="before")
    @classmethod
    def _accept_yaml_booleans(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare on or off as a boolean.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class CheckpointConfig(_Section):
    """When the run is saved, and what is kept."""

    every_steps: Positive | None = pydantic.Field(None, description="null: once an epoch")
    keep: Positive = pydantic.Field(2, description="the newest so many, and always the best")
    best_metric: Literal["accuracy", "loss"] = "accuracy"


class LogConfig(_Section):
    every_steps: Positive = pydantic.Field(10, description="steps between two lines of metrics.jsonl")


class Config(_Section):
    """The whole configuration of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    distribute: DistributeConfig = DistributeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    def to_yaml(self) -> str:
        """Every setting, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def identity(self, *, dataset_hash: str, precision: str) -> str:
        """SHA-256 of what decides the trained weights: a run may only go on where this is the same.

        Where it runs (devices, number of replicas, XLA), how often it saves and where the data lies are left
        out: a run may move to another machine. `precision` is the resolved one.
        """
        parts = self.model_dump(mode="json", include={"model", "train", "optimizer", "augment"})
        decisive = {"resize", "sampling", "run_length", "last_batch", "scaled_decoding"}
        parts["data"] = self.data.model_dump(mode="json", include=decisive)
        parts["dataset"] = dataset_hash
        parts["precision"] = precision
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_config(
    path: pathlib.Path | None = None,
    overrides: list[str] | None = None,
    *,
    flags: dict[str, dict[str, Any]] | None = None,
) -> Config:
    """The defaults, changed by the recipe at `path`, by each `section.key=value` of `overrides`, then by `flags`.

    Raises:
        ConfigError: the file is missing or not a mapping, a key is unknown (the nearest is named), or a value
            is of the wrong type or out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_recipe(path)
    for override in overrides or []:
        _apply_override(values, override)
    for section, settings in (flags or {}).items():
        if settings:
            values.setdefault(section, {}).update(settings)
    return parse_config(values, origin=str(path) if path else "the configuration")


def parse_config(values: dict[str, Any], *, origin: str) -> Config:
    """Validates a nested mapping of settings; `origin` names it in errors."""
    try:
        return Config.model_validate(_accept_whole_floats(values))
    except pydantic.ValidationError as e:
        raise ConfigError(_explain(e.errors()[0], origin)) from None


def _read_recipe(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"the recipe {path} does not exist; give --config the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as e:
        raise ConfigError(f"the recipe {path} is not readable YAML: {' '.join(str(e).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"the recipe {path} holds a {type(values).__name__}; expected sections such as 'train:'")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, such as train.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: the value {text!r} is not YAML; quote it") from None
    if value is not None and not isinstance(values.setdefault(section, {}), dict):
        raise ConfigError(f"{section!r} of the recipe is not a section, so --set {override!r} cannot change it")
    values.setdefault(section, {})[name] = _number_from_yaml(value)


def _number_from_yaml(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as a string (it wants 1.0e-3); every user means the number.
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    return value


def _accept_whole_floats(values: dict[str, Any]) -> dict[str, Any]:
    return {
        section: {k: _number_from_yaml(v) for k, v in entries.items()} if isinstance(entries, dict) else entries
        for section, entries in values.items()
    }


def _explain(error: Any, origin: str) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location[:2])
    if error["type"] == "extra_forbidden":
        return f"{origin} has no setting {name!r}; {_nearest(location)}"
    expected = error["msg"][0].lower() + error["msg"][1:]
    return f"{name} in {origin} is {error['input']!r}: {expected}"


def _nearest(location: list[str]) -> str:
    sections = {name: list(field.annotation.model_fields) for name, field in Config.model_fields.items()}  # type: ignore[union-attr]
    if len(location) == 1:
        known, given = list(sections), location[0]
    else:
        known, given = [f"{location[0]}.{key}" for key in sections[location[0]]], ".".join(location[:2])
        elsewhere = [f"{s}.{k}" for s, keys in sections.items() for k in keys if k == location[1]]
        if elsewhere:
            return f"did you mean {elsewhere[0]!r}?"
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
