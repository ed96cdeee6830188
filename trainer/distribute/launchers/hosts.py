"""The hosts of a job, as in `--hosts a:8,b:8`, and the slots of their workers."""

import dataclasses
import re
import socket

import psutil

from trainer.errors import ConfigError

# A name, an IPv4 address, or an IPv6 address in brackets, each perhaps with a user before it, as ssh takes them.
_HOST = re.compile(r"(?P<name>(?:\w[\w.-]*@)?(?:[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:.]+\]))(?::(?P<slots>[0-9]+))?")


@dataclasses.dataclass(frozen=True)
class Host:
    """A host by the name that ssh knows; `name` None is this machine. It takes `num_slots` workers."""

    name: str | None
    num_slots: int

    def __str__(self) -> str:
        return self.name or "this machine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSlot:
    """The slot of worker `worker_index` of a job: the `local_index`-th of the `num_local` workers of its host."""

    host: Host
    worker_index: int
    local_index: int
    num_local: int


def parse_hosts(text: str) -> list[Host]:
    """Return the hosts of `name:slots,name:slots`; a name without a number takes one worker.

    Raises:
        ConfigError: a part is not of this form, takes no worker, or names a host again.
    """
    hosts: list[Host] = []
    for part in text.split(","):
        found = _HOST.fullmatch(part.strip())
        if found is None:
            raise ConfigError(f"--hosts has {part.strip()!r}; expected NAME:WORKERS, as in --hosts node1:8,node2:8")
        host = Host(found["name"], int(found["slots"] or 1))
        if host.num_slots < 1:
            raise ConfigError(f"--hosts gives {host.name} no workers; expected at least 1, or leave the host out")
        if any(other.name == host.name for other in hosts):
            raise ConfigError(f"--hosts names {host.name} twice; name it once with all of its workers")
        hosts.append(host)
    return hosts


def find_own_address(name: str) -> str | None:
    """Return the address of this machine that `name` resolves to; None if it is another machine or does not resolve."""
    try:
        found = socket.getaddrinfo(name.rpartition("@")[2].strip("[]"), None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return None  # ssh may know it by its own configuration
    own = {address.address.partition("%")[0] for group in psutil.net_if_addrs().values() for address in group}
    return next((str(info[4][0]) for info in found if info[4][0] in own), None)


def assign_slots(hosts: list[Host]) -> list[WorkerSlot]:
    """Return a slot for each worker; ranks of a host are consecutive, so that most of a ring is inside the hosts."""
    slots: list[WorkerSlot] = []
    for host in hosts:
        for local_index in range(host.num_slots):
            slot = WorkerSlot(host=host, worker_index=len(slots), local_index=local_index, num_local=host.num_slots)
            slots.append(slot)
    return slots
