"""Count the processes that the kernel has killed for lack of memory."""

import contextlib
import pathlib
from collections.abc import Iterator

_PROC, _CGROUPS = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")


def count_oom_kills(proc: pathlib.Path = _PROC, cgroups: pathlib.Path = _CGROUPS) -> int:
    """Return the count of this process's memory cgroup, or that of the whole machine where the cgroup shows none."""
    for file in (*_cgroup_files(proc, cgroups), proc / "vmstat"):
        with contextlib.suppress(OSError, ValueError):
            counts = dict(line.split() for line in file.read_text(encoding="utf-8").splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0


def _cgroup_files(proc: pathlib.Path, cgroups: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the files of cgroup versions 2 and 1, by the path on the host and by that inside a container."""
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                folder, name = cgroups, "memory.events"
            elif "memory" in controllers.split(","):
                folder, name = cgroups / "memory", "memory.oom_control"
            else:
                continue
            yield folder / path.lstrip("/") / name
            yield folder / name
