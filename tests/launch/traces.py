"""What a job leaves behind on its machine: processes, ports, shared memory."""

import dataclasses
import pathlib

import psutil


@dataclasses.dataclass
class Traces:
    """Whatever a job may leave behind, as seen while it ran."""

    processes: set[psutil.Process] = dataclasses.field(default_factory=set)
    ports: set[int] = dataclasses.field(default_factory=set)
    shared_memory: set[pathlib.Path] = dataclasses.field(default_factory=set)

    def look(self, launcher: psutil.Process) -> None:
        found = [launcher]
        try:
            found += launcher.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for process in found:
            try:
                maps = process.memory_maps()
                sockets = process.net_connections("tcp")
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            self.processes.add(process)
            self.shared_memory |= {pathlib.Path(m.path) for m in maps if m.path.startswith("/dev/shm/")}
            self.ports |= {s.laddr.port for s in sockets if s.status == psutil.CONN_LISTEN}

    def check_that_nothing_is_left(self) -> None:
        _, alive = psutil.wait_procs(self.processes, timeout=600)
        assert not alive, [process.cmdline() for process in alive]
        pids = {process.pid for process in self.processes}
        # A port that somebody else has been given since is nobody's trace.
        listening = {
            found.laddr.port
            for found in psutil.net_connections("tcp")
            if found.status == psutil.CONN_LISTEN and (found.pid is None or found.pid in pids)
        }
        assert not self.ports & listening
        assert not [path for path in self.shared_memory if path.exists()]
        named = [path.name for path in pathlib.Path("/dev/shm").iterdir() if any(str(pid) in path.name for pid in pids)]
        assert not named
        rows = pathlib.Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        assert not [row for row in rows if {int(row.split()[4]), int(row.split()[5])} & pids]
