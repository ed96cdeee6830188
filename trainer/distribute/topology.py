"""The workers, replicas and devices of a job, and their parts of a batch. Batches are divided here alone."""

import dataclasses
import math
from typing import Literal

from trainer.config.distribute import DistributeConfig
from trainer.errors import ConfigError, DeviceError

Strategy = Literal["single", "mirrored", "multiworker", "horovod"]
Device = Literal["cpu", "gpu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """The replicas of a job: `num_workers` processes with `num_local_replicas` each. Worker 0 is the chief."""

    strategy: Strategy
    device: Device
    num_local_replicas: int
    num_workers: int = 1
    worker_index: int = 0

    @property
    def num_replicas(self) -> int:
        return self.num_workers * self.num_local_replicas

    @property
    def is_chief(self) -> bool:
        return self.worker_index == 0

    @property
    def local_replicas(self) -> range:
        """The indices of this worker's replicas among all replicas."""
        first = self.worker_index * self.num_local_replicas
        return range(first, first + self.num_local_replicas)


@dataclasses.dataclass(frozen=True)
class BatchDivision:
    """A division of `global_batch_size` consecutive positions among `num_replicas` replicas.

    Positions are dealt in pairs (2i, 2i + 1), so that the partners of mixup stay on one replica; slices differ by at
    most one pair. Every replica computes `per_replica_batch_size` examples, the shorter slices filled up with
    examples of weight zero, so that shapes are static.
    """

    global_batch_size: int
    num_replicas: int

    @property
    def num_pairs(self) -> int:
        return math.ceil(self.global_batch_size / 2)

    @property
    def per_replica_batch_size(self) -> int:
        return max(stop - start for start, stop in map(self.slice_of, range(self.num_replicas)))

    @property
    def is_even(self) -> bool:
        return self.per_replica_batch_size * self.num_replicas == self.global_batch_size

    def slice_of(self, replica: int) -> tuple[int, int]:
        """Return the part [start, stop) of `replica` within the global batch."""
        start = self.num_pairs * replica // self.num_replicas * 2
        stop = self.num_pairs * (replica + 1) // self.num_replicas * 2
        return min(start, self.global_batch_size), min(stop, self.global_batch_size)


def part_size(per_replica_batch_size: int, num_parts: int) -> int:
    """Return the number of examples in each of the parts that a replica computes its slice in, one after the other.

    Even where there are several, so that the partners of mixup stay together; the last parts may have less.
    """
    return per_replica_batch_size if num_parts == 1 else math.ceil(per_replica_batch_size / num_parts / 2) * 2


def divide_batch(config: DistributeConfig, global_batch_size: int, num_replicas: int) -> BatchDivision:
    """Divide the batch among the replicas.

    Raises:
        ConfigError: a replica would get nothing, or, with `strict_batch`, less than the others.
    """
    division = BatchDivision(global_batch_size, num_replicas)
    if division.num_pairs < num_replicas:
        raise ConfigError(
            f"train.global_batch_size is {global_batch_size}, too small for {num_replicas} replicas, which take at "
            f"least two examples each; use --set train.global_batch_size={2 * num_replicas} or fewer replicas"
        )
    if config.strict_batch and not division.is_even:
        raise ConfigError(
            f"train.global_batch_size is {global_batch_size}, which {num_replicas} replicas cannot share evenly in "
            f"pairs; use a multiple of {2 * num_replicas}, or leave out --strict-batch"
        )
    return division


def resolve_topology(config: DistributeConfig, *, num_gpus_found: int) -> Topology:
    """Decide devices, replicas and strategy on this machine.

    Raises:
        DeviceError: the machine has fewer GPUs than asked for, or the strategy does not fit the replicas.
    """
    device, num_replicas = resolve_devices(config, num_gpus_found)
    strategy: Strategy = config.strategy if config.strategy != "auto" else "single" if num_replicas == 1 else "mirrored"
    if strategy == "single" and num_replicas > 1:
        raise DeviceError(f"--strategy single runs one replica, and {num_replicas} were asked for; use mirrored")
    return Topology(strategy=strategy, device=device, num_local_replicas=num_replicas)


def resolve_devices(config: DistributeConfig, num_gpus_found: int) -> tuple[Device, int]:
    """Return the kind of device and the number of replicas on this machine.

    Raises:
        DeviceError: see `resolve_topology`.
    """
    if config.replicas is not None and (config.device != "cpu" or config.gpus is not None):
        raise DeviceError(
            f"--replicas {config.replicas} is for the CPU; add --device cpu, or say --gpus {config.replicas}"
        )
    if config.device == "cpu" and config.gpus is not None:
        raise DeviceError(f"--device cpu and --gpus {config.gpus} exclude each other; leave one out")
    wants_gpu = config.device == "gpu" or config.gpus is not None or (config.device == "auto" and num_gpus_found > 0)
    if not wants_gpu:
        return "cpu", config.replicas or 1
    num_gpus = config.gpus or num_gpus_found
    if num_gpus == 0 or num_gpus > num_gpus_found:
        there = f"{num_gpus_found} GPU{'s' if num_gpus_found != 1 else ''}"
        alternative = (
            f"--gpus {num_gpus_found}" if num_gpus_found else f"--device cpu --replicas {min(num_gpus or 1, 2)}"
        )
        raise DeviceError(
            f"{config.gpus or 'at least one'} GPU{'s' if (config.gpus or 1) != 1 else ''} asked for, but TensorFlow "
            f"finds {there} on this machine; use {alternative}"
        )
    return "gpu", num_gpus
