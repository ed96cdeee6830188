"""Check cores, memory, shared memory, open files, disk, ports and clock of this machine."""

import os
import pathlib
import resource
import shutil
import socket
from collections.abc import Iterator

import psutil

from trainer.doctor.finding import Finding, absent, ok, problem, warning
from trainer.system.programs import output_of

_SHARED_MEMORY = pathlib.Path("/dev/shm")  # noqa: S108 -- looked at, never written to
# NCCL and Open MPI pass messages between the processes of a host through it; a container's usual 64 MiB are too few.
_MIN_SHARED_MEMORY_BYTES = 2**30
_MIN_OPEN_FILES = 4096
_CGROUP_CPU = pathlib.Path("/sys/fs/cgroup/cpu.max")
_CGROUP_MEMORY = pathlib.Path("/sys/fs/cgroup/memory.max")


def check_machine(directory: pathlib.Path = pathlib.Path(".")) -> Iterator[Finding]:
    """Check this machine; `directory` is where runs would be written."""
    yield _check_cores()
    yield _check_memory()
    yield _check_shared_memory()
    yield _check_open_files()
    yield _check_disk(directory)
    yield _check_ports()
    yield _check_clock()


def _check_cores() -> Finding:
    usable = len(os.sched_getaffinity(0))
    quota, _, period = _read(_CGROUP_CPU).partition(" ")
    if quota.isdecimal() and int(quota) / int(period) < usable:
        limit = int(quota) / int(period)
        return warning(
            "cores",
            f"{usable} visible, but the container may use {limit:g}",
            f"--set data.num_parallel_reads={max(1, int(limit))}, or raise the limit of the container",
        )
    return ok("cores", f"{usable} usable")


def _check_memory() -> Finding:
    memory = psutil.virtual_memory()
    limit = _read(_CGROUP_MEMORY)
    total = min(memory.total, int(limit)) if limit.isdecimal() else memory.total
    text = f"{total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free"
    if memory.available < 4 * 2**30:
        return warning("memory", text, "stop other programs: a training process takes about 2 GiB")
    return ok("memory", text)


def _check_shared_memory() -> Finding:
    if not _SHARED_MEMORY.is_dir():
        return problem("shared memory", f"{_SHARED_MEMORY} is missing", f"mount a tmpfs at {_SHARED_MEMORY}")
    usage = shutil.disk_usage(_SHARED_MEMORY)
    text = f"{usage.free / 2**30:.2f} of {usage.total / 2**30:.2f} GiB free"
    if usage.free < _MIN_SHARED_MEMORY_BYTES:
        return warning(
            "shared memory",
            text,
            "give the container more: docker run --shm-size 8g, or in Kubernetes an emptyDir in memory at /dev/shm",
        )
    return ok("shared memory", text)


def _check_open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MIN_OPEN_FILES:
        return warning("open files", f"{soft} (at most {hard})", f"ulimit -n {_MIN_OPEN_FILES}")
    return ok("open files", "unlimited" if soft == resource.RLIM_INFINITY else str(soft))


def _check_disk(directory: pathlib.Path) -> Finding:
    free = shutil.disk_usage(directory).free
    text = f"{free / 2**30:.1f} GiB free in {directory.resolve()}"
    if not os.access(directory, os.W_OK):
        return problem(
            "disk", f"{directory.resolve()} cannot be written", "change to a directory of yours, or give --run-dir"
        )
    if free < 5 * 2**30:
        return warning(
            "disk", text, "delete something: three checkpoints are kept, and those of a large backbone take 1 GiB each"
        )
    return ok("disk", text)


def _check_ports() -> Finding:
    """Check that processes of this machine can reach each other by TCP."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                return ok("ports", f"loopback connects (tried port {port})")
    except OSError as e:
        return problem(
            "ports", f"loopback does not connect: {e.strerror or e}", "ip link set lo up, and check the firewall"
        )


def _check_clock() -> Finding:
    fix = "for several hosts, start a time service (chrony, systemd-timesyncd) on each"
    if shutil.which("timedatectl") is None:
        return absent("clock", "no timedatectl, so not known whether it is synchronised", fix)
    answer = output_of("timedatectl", "show", "--property=NTPSynchronized", "--value", timeout_secs=5.0)
    if answer is None:
        return absent("clock", "timedatectl cannot say whether it is synchronised", fix)
    if answer != "yes":
        return warning("clock", "not synchronised", fix)
    return ok("clock", "synchronised")


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
