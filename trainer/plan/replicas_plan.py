"""The replicas of a run, their precision, and how they share a batch."""

import math
from collections.abc import Sequence
from typing import Literal

import pydantic

from trainer.config.config import Config
from trainer.distribute.topology import BatchDivision, Device, Strategy, Topology, divide_batch
from trainer.errors import ConfigError

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
_BFLOAT16_COMPUTE_CAPABILITY = (8, 0)


class ReplicasPlan(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The replicas and their batch, the part of a plan that changes with the members of an elastic job.

    `replica_slices` are the [start, stop) of each replica within the global batch.
    """

    strategy: Strategy
    device: Device
    num_workers: int
    num_replicas: int
    precision: Precision
    jit_compile: bool
    global_batch_size: int
    per_replica_batch_size: int
    replica_slices: list[tuple[int, int]]

    @property
    def division(self) -> BatchDivision:
        return BatchDivision(self.global_batch_size, self.num_replicas)


def plan_replicas(config: Config, topology: Topology, compute_capabilities: Sequence[tuple[int, int]]) -> ReplicasPlan:
    """Divide the batch over the replicas of `topology`, and resolve precision and XLA.

    Raises:
        ConfigError: The batch cannot be shared or accumulated as asked for, or XLA cannot compile the model.
    """
    division = divide_batch(config.distribute, config.train.global_batch_size, topology.num_replicas)
    _check_accumulation(config, division)
    return ReplicasPlan(
        strategy=topology.strategy,
        device=topology.device,
        num_workers=topology.num_workers,
        num_replicas=topology.num_replicas,
        precision=_resolve_precision(config, topology, compute_capabilities),
        jit_compile=_resolve_jit_compile(config, topology),
        global_batch_size=config.train.global_batch_size,
        per_replica_batch_size=division.per_replica_batch_size,
        replica_slices=[division.slice_of(replica) for replica in range(topology.num_replicas)],
    )


def _resolve_precision(
    config: Config, topology: Topology, compute_capabilities: Sequence[tuple[int, int]]
) -> Precision:
    """Return the precision that the oldest of the GPUs of all replicas is fast in, unless one was asked for."""
    if config.distribute.precision != "auto":
        return config.distribute.precision
    if topology.device == "cpu":
        return "float32"
    return "mixed_bfloat16" if min(compute_capabilities) >= _BFLOAT16_COMPUTE_CAPABILITY else "mixed_float16"


def _resolve_jit_compile(config: Config, topology: Topology) -> bool:
    if config.model.batch_norm == "synchronized":
        if config.distribute.xla == "on":
            raise ConfigError(
                "model.batch_norm is synchronized, whose statistics cross the network in the middle of the forward "
                "pass, and --xla is on, which cannot do that; use --xla auto, or --set model.batch_norm=per_replica"
            )
        return False
    # On CPUs, XLA's convolutions are several times slower than the kernels that TensorFlow ships.
    return topology.device == "gpu" if config.distribute.xla == "auto" else config.distribute.xla == "on"


def _check_accumulation(config: Config, division: BatchDivision) -> None:
    num_parts, size = config.train.num_parts, division.per_replica_batch_size
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
