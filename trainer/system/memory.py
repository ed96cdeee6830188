"""Measure the memory that this process may use, and refuse what would not fit before it starts."""

import pathlib

import psutil

from trainer.errors import UsageError

_BYTES_PER_GIB = 2**30
# A container's limit, which the system's figure of free memory does not know: version 2 and 1 of control groups.
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def find_ram_budget_bytes(ram_budget_gib: float | None) -> int:
    """Return what was asked for, or half of the free memory within the limit of the container, if any."""
    if ram_budget_gib is not None:
        return int(ram_budget_gib * _BYTES_PER_GIB)
    return free_bytes() // 2


def check_fits(num_bytes: int, what: str, fix: str) -> None:
    """Refuses work whose memory grows with classes, images or features before it is started, and not the system later.

    Raises UsageError, which ends with `fix`, where `num_bytes` are more than is free.
    """
    free = free_bytes()
    if num_bytes > free:
        raise UsageError(
            f"{what} takes about {num_bytes / _BYTES_PER_GIB:,.1f} GiB of memory, and {free / _BYTES_PER_GIB:,.1f} GiB "
            f"are free; {fix}"
        )


def free_bytes() -> int:
    """Return the free memory, within the limit of the container where there is one."""
    free: int = psutil.virtual_memory().available
    for limit_file, usage_file in _CGROUP_FILES:
        try:
            limit, usage = (int(pathlib.Path(file).read_text(encoding="utf-8")) for file in (limit_file, usage_file))
        except (OSError, ValueError):  # no such control group, or its limit is "max"
            continue
        free = min(free, max(limit - usage, 0))
    return free
