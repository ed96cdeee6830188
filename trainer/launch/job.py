"""A job of several processes: the slots of its workers, and how this process starts them."""

import contextlib
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.config.distribute import DistributeConfig
from trainer.distribute.elastic import options
from trainer.distribute.elastic.supervisor import ElasticSupervisor
from trainer.distribute.launchers import heartbeat
from trainer.distribute.launchers.environments import horovod_rendezvous, multiworker_environments
from trainer.distribute.launchers.external import OF_SEVERAL_PROCESSES, can_meet, check_alone, find_external_worker
from trainer.distribute.launchers.hosts import Host, WorkerSlot, assign_slots, parse_hosts
from trainer.distribute.launchers.supervisor import Supervisor, SupervisorOptions
from trainer.distribute.launchers.versions import installed_versions
from trainer.distribute.launchers.worker import Ready
from trainer.distribute.topology import Device, Strategy, Topology, resolve_devices
from trainer.errors import ConfigError, DeviceError
from trainer.plan.replicas_plan import ReplicasPlan
from trainer.system import tf_runtime
from trainer.system.child_python import python_command

if TYPE_CHECKING:
    from trainer.distribute.engine import Engine

LOG_DIR_NAME = "logs"
_Environments = Callable[[Sequence[Ready]], list[dict[str, str]]]


def find_worker_slots(config: DistributeConfig, *, num_gpus_found: int) -> list[WorkerSlot]:
    """Return the slots of the workers that this process has to start; none if it trains itself, or is a worker.

    Raises:
        ConfigError: `hosts` is not of the right form, or needs another strategy; or this process was started as one of
            several, and the strategy is one of a single process.
        DeviceError: this machine has fewer GPUs than asked for.
    """
    if options.is_elastic(config):
        return [] if options.is_worker() else options.find_worker_slots(config, num_gpus_found=num_gpus_found)
    check_alone(config.strategy)
    if config.hosts is not None and config.strategy not in OF_SEVERAL_PROCESSES:
        raise ConfigError(
            f"--hosts {config.hosts} needs a strategy of several processes, and --strategy is {config.strategy}; add "
            "--strategy horovod or --strategy multiworker"
        )
    if config.strategy not in OF_SEVERAL_PROCESSES or _is_started_elsewhere(config):
        return []
    if config.hosts is not None:
        slots = assign_slots(parse_hosts(config.hosts))
        if (asked := config.gpus or config.replicas) not in (None, len(slots)):
            raise DeviceError(
                f"{asked} replicas asked for, but --hosts {config.hosts} has places for {len(slots)}; leave the "
                "number out, or make the two agree"
            )
        return slots
    _, num_replicas = resolve_devices(config, num_gpus_found)
    return assign_slots([Host(None, num_replicas)])


def _is_started_elsewhere(config: DistributeConfig) -> bool:
    """Return True if this process is a worker of an external launcher, which has started the others.

    A launcher of one process has started no others. If more are asked for, or the workers of this strategy cannot find
    each other through that launcher, this process starts them.
    """
    worker = find_external_worker()
    if worker is None or worker.num_workers > 1 or heartbeat.VARIABLE in os.environ:
        return worker is not None
    wants_more = config.hosts is not None or (config.gpus or config.replicas or 1) > 1
    return not wants_more and can_meet(config.strategy, worker)


def topology_of_job(config: DistributeConfig, slots: Sequence[WorkerSlot], device: Device) -> Topology:
    """Return the topology of the job for its chief: one replica in each slot."""
    strategy: Strategy = "horovod" if config.strategy == "horovod" else "multiworker"
    return Topology(strategy=strategy, device=device, num_local_replicas=1, num_workers=len(slots))


def run_workers(
    slots: Sequence[WorkerSlot], config: DistributeConfig, *, arguments: list[str], run_dir: pathlib.Path
) -> None:
    """Run `trainer launch` with `arguments` in every slot until all have ended.

    Their output is kept in `run_dir`/logs and passed on to standard error.

    Raises: see `Supervisor.run`.
    """
    if options.is_elastic(config):
        _run_elastic_workers(config, arguments=arguments, run_dir=run_dir)
        return
    run_command_in_slots(slots, config, command=worker_command(arguments), log_dir=run_dir / LOG_DIR_NAME)


def run_command_in_slots(
    slots: Sequence[WorkerSlot], config: DistributeConfig, *, command: list[str], log_dir: pathlib.Path
) -> None:
    """Run `command` in every slot, with what its strategy needs to connect them, until all have ended.

    Their output is kept in `log_dir` and passed on to standard error.

    Raises: see `Supervisor.run`.
    """
    supervisor = Supervisor(
        slots,
        log_dir=log_dir,
        show=lambda line: print(line, file=sys.stderr, flush=True),
        options=supervisor_options(config),
    )
    with _rendezvous(config, slots) as environments:
        supervisor.run(command, environments)


def _run_elastic_workers(config: DistributeConfig, *, arguments: list[str], run_dir: pathlib.Path) -> None:
    source = options.find_source(config, num_gpus_found=len(tf_runtime.list_gpus()))
    supervisor = ElasticSupervisor(
        source,
        log_dir=run_dir / LOG_DIR_NAME,
        show=lambda line: print(line, file=sys.stderr, flush=True),
        options=options.elastic_options(config, source, supervisor=supervisor_options(config)),
    )
    supervisor.run(worker_command(arguments), options.worker_environment)


def worker_arguments(
    arguments: Sequence[str],
    *,
    run_dir: pathlib.Path | str,
    dataset_dir: str,
    recipe: str | None = None,
    devices: Sequence[str] = (),
) -> list[str]:
    """Return the arguments of every worker: those of this command, and the decisions that this process has made."""
    passed_on = list(arguments)
    passed_on.remove("launch")
    # The launcher alone prints the result and refuses an existing run, which a worker that joins later must go on with;
    # and a dry run shows the commands of the run without --dry-run.
    passed_on = [argument for argument in passed_on if argument not in ("--json", "--no-resume", "--dry-run")]
    decided = [f"--run-dir={run_dir}", f"--data={dataset_dir}"]
    return [*passed_on, *decided, *([f"--recipe={recipe}"] if recipe is not None else []), *devices]


def device_arguments(replicas: ReplicasPlan) -> list[str]:
    """Return the decisions that depend on the GPUs of all hosts, which a worker on one of them cannot make."""
    xla = "on" if replicas.jit_compile else "off"
    return [f"--device={replicas.device}", f"--precision={replicas.precision}", f"--xla={xla}"]


def worker_command(arguments: Sequence[str]) -> list[str]:
    """Return the command of every worker."""
    return python_command("trainer", "launch", *arguments)


def supervisor_options(config: DistributeConfig) -> SupervisorOptions:
    """Return the timeouts of the supervisor."""
    return SupervisorOptions(
        start_timeout_secs=config.start_timeout_secs or SupervisorOptions.start_timeout_secs,
        stop_grace_secs=config.stop_grace_secs,
        stall_timeout_secs=config.stall_timeout_secs,
        host_timeout_secs=config.host_timeout_secs,
        ssh_options=config.ssh_options,
    )


def check_workers_agree(engine: "Engine", facts: dict[str, str]) -> None:
    """Compare `facts`, such as the hash of the dataset, over all workers before the first step.

    Raises:
        ConfigError: on every worker, where they differ.
    """
    if engine.topology.num_workers == 1:
        return
    facts = {**facts, **installed_versions()}
    digests = [list(hashlib.sha256(value.encode()).digest()) for value in facts.values()]
    # One row for each replica; those of a worker are the same.
    gathered = engine.gather_from_workers(np.array(digests, np.int32))
    for i, (name, value) in enumerate(facts.items()):
        different = [worker for worker, found in enumerate(gathered) if not np.array_equal(found[i], gathered[0][i])]
        if different:
            others = ", ".join(map(str, different))
            raise ConfigError(
                f"the workers differ in their {name}: worker {engine.topology.worker_index} has {value[:40]}, and "
                f"worker {others} not what worker 0 has; give all the same configuration, dataset and installation"
            )


@contextlib.contextmanager
def _rendezvous(config: DistributeConfig, slots: Sequence[WorkerSlot]) -> Iterator[_Environments]:
    if config.strategy == "multiworker":
        yield lambda ready: multiworker_environments(slots, ready)
        return
    with horovod_rendezvous() as rendezvous:
        yield lambda ready: rendezvous.environments(slots, ready)
