"""What "auto" comes to for batch normalisation, precision and XLA; what cannot be had together is an error."""

import math
from collections.abc import Sequence
from typing import Literal

from trainer.config import Config
from trainer.distribute.topology import BatchDivision, Topology
from trainer.errors import ConfigError
from trainer.model.classifier import BatchNorm
from trainer.model.freezing import is_frozen

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
_BFLOAT16_COMPUTE_CAPABILITY = (8, 0)


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
