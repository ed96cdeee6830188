"""The hosts that an elastic job may use now: fixed by `--hosts`, or printed by a discovery script."""

import dataclasses
import subprocess
from collections.abc import Sequence
from typing import Protocol

from trainer.distribute.launchers.hosts import Host, parse_hosts
from trainer.errors import ConfigError

_TIMEOUT_SECS = 60.0


class HostSource(Protocol):
    """A source of the hosts that may be used now."""

    def find(self) -> list[Host]:
        """Return the hosts, the preferred ones first."""


@dataclasses.dataclass(frozen=True)
class FixedHosts:
    """A fixed list of hosts."""

    hosts: Sequence[Host]

    def find(self) -> list[Host]:
        return list(self.hosts)


@dataclasses.dataclass(frozen=True)
class HostDiscoveryScript:
    """An executable at `path` that prints one host per line, with `:slots` where it takes more than one worker.

    The form is that of Horovod's scripts, and of the MPI operator's /etc/mpi/discover_hosts.sh.
    """

    path: str

    def find(self) -> list[Host]:
        """Return the hosts that the script prints.

        Raises:
            ConfigError: the script cannot be run, fails, hangs, or prints something else than hosts.
        """
        lines = self._run().split("\n")
        hosts: list[Host] = []
        for line in filter(None, (line.strip() for line in lines)):
            try:
                (host,) = parse_hosts(line)
            except (ConfigError, ValueError):
                raise ConfigError(
                    f"the host discovery script {self.path} printed {line[:100]!r}; expected NAME or NAME:WORKERS, "
                    "one host a line"
                ) from None
            if any(other.name == host.name for other in hosts):
                raise ConfigError(
                    f"the host discovery script {self.path} printed {host.name} twice; expected one line for each host"
                )
            hosts.append(host)
        return hosts

    def _run(self) -> str:
        expected = "expected an executable that prints the hosts that may be used now, a line each"
        try:
            done = subprocess.run(  # noqa: S603 -- the user's own program, no shell
                [self.path],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_SECS,
                check=False,
                encoding="utf-8",
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"the host discovery script {self.path} did not end within {_TIMEOUT_SECS:g} s; {expected}, at once"
            ) from None
        except OSError as e:
            raise ConfigError(
                f"the host discovery script {self.path} cannot be run ({e.strerror}); {expected}: give its path, and "
                "make it executable, its first line such as #!/bin/sh"
            ) from None
        if done.returncode != 0:
            words = " ".join(done.stderr.split())[:200] or "it said nothing"
            raise ConfigError(
                f"the host discovery script {self.path} ended with status {done.returncode} ({words}); {expected}, "
                "and ends with status 0"
            )
        return done.stdout
