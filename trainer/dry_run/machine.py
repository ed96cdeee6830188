"""The engine of a run, as resolved, and the problems of this machine and the hosts."""

from collections.abc import Iterator

from trainer.config.config import Config
from trainer.distribute.elastic.options import HOST_TO_COME
from trainer.distribute.launchers.external import find_external_worker
from trainer.doctor.finding import Finding
from trainer.doctor.frameworks import check_frameworks
from trainer.doctor.gpus import check_gpus
from trainer.doctor.machine import check_machine
from trainer.doctor.other_hosts import check_hosts
from trainer.dry_run.section import Section
from trainer.launch.plan_run import PlannedRun
from trainer.plan.plan import Plan
from trainer.plan.replicas_plan import ReplicasPlan
from trainer.system.disk import nearest_directory


class Engine(Section):
    """The engine as asked for and as resolved; `collectives` names what reduces gradients over the replicas."""

    strategy_asked: str
    strategy: str
    device: str
    collectives: str
    precision_asked: str
    precision: str
    scales_loss: bool
    xla_asked: str
    xla: bool
    batch_norm: str
    compression: str
    fusion_mib: float | None
    cycle_time_ms: float | None


class FindingOfDoctor(Section):
    """A problem or warning of `trainer doctor`."""

    check: str
    verdict: str
    found: str
    fix: str


def describe_engine(plan: Plan, config: Config) -> Engine:
    asked = config.distribute
    return Engine(
        strategy_asked=asked.strategy,
        strategy=plan.replicas.strategy,
        device=plan.replicas.device,
        collectives=_name_collectives(plan.replicas),
        precision_asked=asked.precision,
        precision=plan.replicas.precision,
        scales_loss=plan.replicas.precision == "mixed_float16",
        xla_asked=asked.xla,
        xla=plan.replicas.jit_compile,
        batch_norm=plan.model.batch_norm,
        compression=asked.compression,
        fusion_mib=asked.fusion_mib,
        cycle_time_ms=asked.cycle_time_ms,
    )


def find_problems(planned: PlannedRun) -> list[FindingOfDoctor]:
    """Check this machine and the hosts of the job as `trainer doctor` does with the same options."""
    return [
        FindingOfDoctor(check=finding.check, verdict=finding.verdict, found=finding.found, fix=finding.fix)
        for finding in _examine(planned)
        if finding.verdict in ("problem", "warning")
    ]


def _examine(planned: PlannedRun) -> Iterator[Finding]:
    config = planned.config.distribute
    known = [slot.host for slot in planned.worker_slots if slot.host.name not in (None, HOST_TO_COME)]
    hosts = list(dict.fromkeys(known))
    replicas = planned.plan.replicas
    yield from check_frameworks(
        wants_horovod=replicas.strategy == "horovod", wants_gpus=replicas.device == "gpu" and not hosts
    )
    # The GPUs of the hosts are checked on the hosts.
    yield from check_gpus(None if hosts else config.gpus)
    yield from check_machine(nearest_directory(planned.run.path.absolute()))
    yield from check_hosts(hosts, config.ssh_options)


def _name_collectives(replicas: ReplicasPlan) -> str:
    if replicas.num_replicas == 1:
        return "none: there is one replica"
    if replicas.strategy == "mirrored":
        return "NCCL" if replicas.device == "gpu" else "within the process"
    if replicas.strategy == "multiworker":
        return "NCCL" if replicas.device == "gpu" else "a ring over gRPC"
    if replicas.device == "gpu":
        return "NCCL; Gloo or MPI to meet"
    worker = find_external_worker()
    return "MPI" if worker is not None and worker.by != "HOROVOD_RANK" else "Gloo"
