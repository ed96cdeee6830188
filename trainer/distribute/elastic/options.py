"""The options of an elastic job: its smallest and largest size, and the source of its hosts."""

import os

from trainer.config.distribute import DistributeConfig
from trainer.distribute.elastic.discovery import FixedHosts, HostDiscoveryScript, HostSource
from trainer.distribute.elastic.generation import HostSlot
from trainer.distribute.elastic.supervisor import ElasticOptions
from trainer.distribute.launchers.environments import GLOO_TIMEOUT_VARIABLE, LOCAL_INDEX_VARIABLE, forwarded_variables
from trainer.distribute.launchers.external import find_external_worker
from trainer.distribute.launchers.hosts import Host, WorkerSlot, assign_slots, parse_hosts
from trainer.distribute.launchers.supervisor import SupervisorOptions
from trainer.distribute.topology import divide_batch, resolve_devices
from trainer.errors import ConfigError, DeviceError

# The name of a host that is not known yet.
HOST_TO_COME = "a host to come"
# Set for the workers of an elastic job.
_VARIABLE = "TRAINER_ELASTIC"
# Horovod's own name for how many seconds an elastic job waits for enough workers.
_WAIT_VARIABLE = "HOROVOD_ELASTIC_TIMEOUT"
_WAIT_SECS = 600
# After so many seconds of silence Horovod gives a peer up. Its own 30 s are long for a job that waits meanwhile.
_SILENCE_SECS = 15


def is_elastic(config: DistributeConfig) -> bool:
    """Return True if the job may change its size."""
    return any(x is not None for x in (config.min_replicas, config.max_replicas, config.host_discovery_script))


def is_worker() -> bool:
    """Return True if this process was started as a worker of an elastic job."""
    return _VARIABLE in os.environ


def find_source(config: DistributeConfig, *, num_gpus_found: int) -> HostSource:
    """Return the source of the hosts.

    Raises:
        ConfigError: options exclude each other.
        DeviceError: this machine has fewer GPUs than asked for.
    """
    _check(config)
    asked = config.gpus or config.replicas
    if config.host_discovery_script is None and config.hosts is None:
        _, num_replicas = resolve_devices(config, num_gpus_found)
        return FixedHosts([Host(None, num_replicas)])
    if asked is not None:
        raise ConfigError(
            f"{asked} replicas asked for, and the hosts say how many there are; leave the number out, and use "
            "--max-replicas for the most"
        )
    if config.host_discovery_script is not None:
        return HostDiscoveryScript(config.host_discovery_script)
    assert config.hosts is not None, "one of the two is there"
    return FixedHosts(parse_hosts(config.hosts))


def _check(config: DistributeConfig) -> None:
    if config.strategy != "horovod":
        raise ConfigError(
            "--min-replicas, --max-replicas and --host-discovery-script make a job elastic, and horovod alone can be; "
            f"--strategy is {config.strategy}; add --strategy horovod, or leave them out"
        )
    if (worker := find_external_worker()) is not None and worker.num_workers > 1:
        raise ConfigError(
            f"an elastic job starts its own workers, and this process was started as one of {worker.num_workers} "
            f"({worker.by} is set); run the command once, without mpirun, srun or horovodrun"
        )
    if config.hosts is not None and config.host_discovery_script is not None:
        raise ConfigError(
            f"--hosts {config.hosts} and --host-discovery-script {config.host_discovery_script} exclude each other; "
            "leave one out"
        )
    if config.max_replicas is None and config.host_discovery_script is not None:
        raise ConfigError(
            "--host-discovery-script needs --max-replicas as well: the global batch must be large enough for them; "
            "add it, as in --max-replicas 8"
        )
    if config.max_replicas is not None and (config.min_replicas or 1) > config.max_replicas:
        raise ConfigError(
            f"--min-replicas {config.min_replicas} is more than --max-replicas {config.max_replicas}; exchange them"
        )


def find_worker_slots(config: DistributeConfig, *, num_gpus_found: int) -> list[WorkerSlot]:
    """Return the slots that the job would start with now; hosts that are not known yet are called `HOST_TO_COME`.

    Raises:
        ConfigError: options exclude each other, or the discovery script fails.
        DeviceError: there are fewer slots than `--min-replicas` on fixed hosts, or fewer GPUs than asked for.
    """
    source = find_source(config, num_gpus_found=num_gpus_found)
    hosts = source.find()
    options = elastic_options(config, source, supervisor=SupervisorOptions())
    worker_slots = assign_slots(hosts)[: options.max_replicas]
    if len(worker_slots) >= options.min_replicas:
        return worker_slots
    if isinstance(source, FixedHosts):
        raise DeviceError(
            f"--min-replicas {options.min_replicas} asked for, and there is room for {len(worker_slots)}; use more "
            f"{'--hosts' if config.hosts else '--replicas or --gpus'}, or --min-replicas {max(1, len(worker_slots))}"
        )
    return assign_slots([*hosts, Host(HOST_TO_COME, options.min_replicas - len(worker_slots))])


def elastic_options(config: DistributeConfig, source: HostSource, *, supervisor: SupervisorOptions) -> ElasticOptions:
    """Return the options of the supervisor.

    Raises:
        ConfigError: HOROVOD_ELASTIC_TIMEOUT is not a number of seconds.
    """
    room = sum(host.num_slots for host in source.find()) if isinstance(source, FixedHosts) else 0
    wait = os.environ.get(_WAIT_VARIABLE, str(_WAIT_SECS))
    if not wait.isdecimal():
        raise ConfigError(f"{_WAIT_VARIABLE} is {wait!r} in the environment; expected whole seconds, as in 600")
    return ElasticOptions(
        min_replicas=config.min_replicas or 1,
        max_replicas=config.max_replicas or room,
        wait_secs=float(wait),
        supervisor=supervisor,
    )


def check_batch(config: DistributeConfig, global_batch_size: int, *, num_slots: int) -> None:
    """Raise ConfigError if some number of replicas that the job may have cannot share the batch.

    Without `--max-replicas`, `num_slots` is the largest of these numbers.
    """
    max_replicas = config.max_replicas or num_slots
    fewest = (config.min_replicas or 1) if config.strict_batch else max_replicas
    for num_replicas in range(fewest, max_replicas + 1):
        divide_batch(config, global_batch_size, num_replicas)


def worker_environment(slot: HostSlot) -> dict[str, str]:
    """Return the environment variables of a worker that has not joined any generation."""
    return {
        GLOO_TIMEOUT_VARIABLE: str(_SILENCE_SECS),
        **forwarded_variables(),
        _VARIABLE: "1",
        LOCAL_INDEX_VARIABLE: str(slot.local_index),
    }
