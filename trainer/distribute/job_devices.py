"""The devices of a job, which decide precision and XLA: every host is asked for its own."""

import dataclasses
from collections.abc import Callable, Sequence

from trainer.config.distribute import DistributeConfig
from trainer.distribute import horovod
from trainer.distribute.elastic import options as request
from trainer.distribute.elastic.options import HOST_TO_COME
from trainer.distribute.launchers.host_devices import HostDevices, ask_hosts, find_own_devices
from trainer.distribute.launchers.hosts import Host, WorkerSlot, find_own_address
from trainer.distribute.launchers.supervisor import SupervisorOptions
from trainer.distribute.topology import Device
from trainer.errors import ConfigError, DeviceError


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobDevices:
    """The devices that the replicas of a job compute on.

    Attributes:
        compute_capabilities: of the GPUs that will be used; empty on CPUs.
        are_asked: other hosts were asked, so that the workers have to be told the answer.
    """

    device: Device
    compute_capabilities: Sequence[tuple[int, int]] = ()
    are_asked: bool = False


def find_job_devices(
    slots: Sequence[WorkerSlot], config: DistributeConfig, options: SupervisorOptions, *, note: Callable[[str], None]
) -> JobDevices:
    """Return the devices of the workers in `slots`, after asking their hosts.

    Raises:
        DeviceError: a host has fewer GPUs than workers, does not answer, or has a Horovod that cannot add up for GPUs.
        ConfigError: no host is known yet that could be asked.
    """
    hosts = list(dict.fromkeys(slot.host for slot in slots))
    others = [host for host in hosts if not _is_here(host)]
    if config.device == "cpu":
        return JobDevices(device="cpu")
    there = [host for host in others if host.name != HOST_TO_COME]
    wants_horovod = config.strategy == "horovod"
    answers = ask_hosts(there, options, wants_horovod=wants_horovod, note=note) if there else {}
    found = {host: answer for host, answer in answers.items() if isinstance(answer, HostDevices)}
    found |= {host: find_own_devices(wants_horovod=wants_horovod) for host in hosts if host not in others}
    obstacles = [answer for answer in answers.values() if isinstance(answer, DeviceError)]
    # An elastic job can start on the hosts that answer.
    if obstacles and not (found and request.is_elastic(config)):
        raise obstacles[0]
    if not found:
        raise ConfigError(
            "no host is there yet that could say whether it has GPUs, on which precision and XLA depend; see that the "
            "host discovery script prints at least one, or add --device cpu"
        )
    if config.device == "auto" and not config.gpus and not any(has.compute_capabilities for has in found.values()):
        return JobDevices(device="cpu", are_asked=bool(others))
    _check_gpus(found, slots, config)
    num_used = {host: sum(slot.host == host for slot in slots) for host in found}
    used = [capability for host, has in found.items() for capability in has.compute_capabilities[: num_used[host]]]
    return JobDevices(device="gpu", compute_capabilities=used, are_asked=bool(others))


def _is_here(host: Host) -> bool:
    return host.name is None or (host.name != HOST_TO_COME and find_own_address(host.name) is not None)


def _check_gpus(found: dict[Host, HostDevices], slots: Sequence[WorkerSlot], config: DistributeConfig) -> None:
    for host, has in found.items():
        num_workers, num_gpus = sum(slot.host == host for slot in slots), len(has.compute_capabilities)
        if num_gpus < num_workers:
            there = f"{num_gpus or 'no'} GPU{'s' if num_gpus != 1 else ''}"
            fix = f"give it {num_gpus}" if num_gpus else "leave it out"
            raise DeviceError(
                f"{host} takes {num_workers} worker{'s' if num_workers != 1 else ''}, and TensorFlow finds {there} "
                f"there; {fix}, or add --device cpu"
            )
        if config.strategy == "horovod" and not has.has_nccl:
            raise horovod.without_nccl(str(host), is_installed=has.has_nccl is not None)
