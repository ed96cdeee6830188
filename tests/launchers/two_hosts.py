"""Two hosts on one machine: network namespaces joined by a cable, each with its own name, hosts file, sshd and disk.

Needs root, iproute2 and openssh-server. `hide` is a folder that only the first host sees.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence

import psutil

_SSH_PORT = 22022


@dataclasses.dataclass(frozen=True)
class TwoHosts:
    """The hosts' names, and what ssh must be told to reach one from the other.

    `hidden` is a folder of the first host; what the second one sees in its place is `hidden_of_second`.
    """

    names: tuple[str, str]
    ssh_options: tuple[str, ...]
    hidden: pathlib.Path
    hidden_of_second: pathlib.Path

    def command_on_first(self, command: Sequence[str]) -> list[str]:
        """`command` as it must be started here to run on the first host."""
        return _on_host(self.names[0], command)

    def cut(self) -> None:
        """Pulls the cable: what is sent from now on is lost, without an answer."""
        _run("ip", "-n", self.names[1], "link", "set", "eth0", "down")

    def mend(self) -> None:
        """Puts the cable back."""
        _run("ip", "-n", self.names[1], "link", "set", "eth0", "up")

    def ssh_from_first(self, *command: str) -> str:
        """What `command` prints on the second host, when the first one runs it there."""
        ssh = self.command_on_first(["ssh", *self.ssh_options, self.names[1], *command])
        return subprocess.run(ssh, check=True, capture_output=True, text=True).stdout


def find_obstacle() -> str | None:
    """Why there can be no two hosts here; None where there can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    missing = [name for name in ("ip", "sshd", "ssh", "unshare") if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"needs {', '.join(missing)} (packages iproute2, openssh-server)"
    tried = subprocess.run(["ip", "netns", "add", f"try{os.getpid()}"], capture_output=True, check=False)
    if tried.returncode:
        return "network namespaces are not allowed here"
    _run("ip", "netns", "del", f"try{os.getpid()}")
    return None


@contextlib.contextmanager
def two_hosts(directory: pathlib.Path, *, hide: pathlib.Path) -> Iterator[TwoHosts]:
    """Builds the hosts; their files lie in `directory`. What the first has in `hide` the second does not see."""
    names = (f"ha{os.getpid()}", f"hb{os.getpid()}")
    key = directory / "key"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    (empty := directory / "empty").mkdir()
    hosts_file = "127.0.0.1 localhost\n" + "".join(f"10.77.0.{i} {name}\n" for i, name in enumerate(names, start=1))
    try:
        _lay_cable(names)
        for i, name in enumerate(names):
            folder = pathlib.Path("/etc/netns") / name
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(hosts_file)
            _start_sshd(name, directory, key, hidden=hide if i else None, empty=empty)
        options = ("-p", str(_SSH_PORT), "-i", str(key))
        options += ("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={directory / 'known_hosts'}")
        yield TwoHosts(names, (*options, "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"), hide, empty)
    finally:
        for name in names:
            _remove_host(name, directory)


_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _on_host(name: str, command: Sequence[str]) -> list[str]:
    as_host = ["sh", "-c", 'hostname "$0"; exec "$@"', name, *command]
    return ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", *as_host]


def _lay_cable(names: tuple[str, str]) -> None:
    for name in names:
        _run("ip", "netns", "add", name)
    ends = [f"v{name}" for name in names]
    _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    for i, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
        _run("ip", "link", "set", end, "netns", name, "name", "eth0")
        _run("ip", "-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", device, "up")


def _start_sshd(
    name: str, directory: pathlib.Path, key: pathlib.Path, *, hidden: pathlib.Path | None, empty: pathlib.Path
) -> None:
    settings = directory / f"{name}.sshd"
    pid_file = directory / f"{name}.pid"
    lines = [f"Port {_SSH_PORT}", f"HostKey {key}", f"AuthorizedKeysFile {key}.pub", f"PidFile {pid_file}"]
    settings.write_text("\n".join([*lines, "StrictModes no", "UsePAM no", ""]))
    sshd = shutil.which("sshd", path=_PATH)
    assert sshd is not None
    hide = f"mount --bind '{empty}' '{hidden}' && " if hidden else ""
    _run(*_on_host(name, ["sh", "-c", f"{hide}exec {sshd} -f '{settings}'"]))
    while not pid_file.exists():
        time.sleep(0.01)


def _remove_host(name: str, directory: pathlib.Path) -> None:
    pid_file = directory / f"{name}.pid"
    if pid_file.exists():
        with contextlib.suppress(psutil.Error):
            psutil.Process(int(pid_file.read_text())).kill()
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    shutil.rmtree(pathlib.Path("/etc/netns") / name, ignore_errors=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": _PATH})
