"""How much memory the input of this process may take."""

import pathlib

import psutil

_BYTES_PER_GIB = 2**30
# A container's limit, which the system's figure of free memory does not know: version 2 and 1 of control groups.
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def find_ram_budget_bytes(ram_budget_gib: float | None) -> int:
    """What was asked for, or half of what is free now, within the limit of the container where there is one."""
    if ram_budget_gib is not None:
        return int(ram_budget_gib * _BYTES_PER_GIB)
    return _free_bytes() // 2


def _free_bytes() -> int:
    free: int = psutil.virtual_memory().available
    for limit_file, usage_file in _CGROUP_FILES:
        try:
            limit, usage = (int(pathlib.Path(file).read_text(encoding="utf-8")) for file in (limit_file, usage_file))
        except (OSError, ValueError):  # no such control group, or its limit is "max"
            continue
        free = min(free, max(limit - usage, 0))
    return free
