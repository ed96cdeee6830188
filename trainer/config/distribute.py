"""The section `distribute`: devices, replicas, hosts, precision and compilation."""

from typing import Annotated, Literal

import pydantic

from trainer.config.section import PathText, Positive, Section


class DistributeConfig(Section):
    """Devices, replicas, hosts, precision and compilation."""

    strategy: Literal["auto", "single", "mirrored", "multiworker", "horovod"] = "auto"
    device: Literal["auto", "gpu", "cpu"] = "auto"
    gpus: Positive | None = pydantic.Field(None, description="null: all there are")
    replicas: Positive | None = pydantic.Field(None, description="on the CPU: how many; null: one")
    hosts: str | None = pydantic.Field(None, description="machines and how many workers each takes, as in a:8,b:8")
    ssh_options: list[str] = pydantic.Field([], description="given to ssh before the name of a host, such as -p2222")
    start_timeout_secs: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        None,
        description="for each of the hosts to answer, and for the workers to find each other; null: 30 for the first, "
        "and 600 for the second, since a cluster may still be pulling images",
    )
    stall_timeout_secs: Annotated[float, pydantic.Field(gt=0)] | None = pydantic.Field(
        600.0, description="a job of several workers without a step for so long is ended; null: never"
    )
    stop_grace_secs: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        120.0, description="for the workers of a job to save after a signal asked for it; then they are killed"
    )
    host_timeout_secs: Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        30.0, description="another host that does not answer for so long is given up, and so is the launcher by it"
    )
    min_replicas: Positive | None = pydantic.Field(
        None, description="an elastic job (horovod) goes on with no fewer than these"
    )
    max_replicas: Positive | None = pydantic.Field(None, description="an elastic job takes no more than these")
    host_discovery_script: PathText | None = pydantic.Field(
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
    xla_cache_dir: PathText | None = pydantic.Field(
        None, description="where programs compiled by XLA are kept for the next start; null: nowhere"
    )
    strict_batch: bool = pydantic.Field(False, description="a batch that the replicas do not divide is an error")

    @property
    def fusion_bytes(self) -> int | None:
        return None if self.fusion_mib is None else int(self.fusion_mib * 2**20)
