"""The GPUs that NVIDIA's driver lists, and the link between them.

nvidia-smi warns among its answers, and says [N/A], [Not Supported] or the like where a board, a driver or a MIG slice
has no value: such lines are left out, and such values are None.
"""

import csv
import dataclasses
import re
from typing import Final, Literal

from trainer.system.programs import output_of

_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_UNKNOWN = re.compile(r"\[.*\]|N/A")
_VERSION = re.compile(r"\d+(\.\d+)+")
_PCIE_QUERY = ("--query-gpu=pcie.link.gen.max,pcie.link.width.max", "--format=csv,noheader,nounits")
# GB/s of one lane in one direction, by the generation of PCIe, after its encoding.
_PCIE_LANE: Final = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
# "GPU 0: NVIDIA H100 80GB HBM3 (UUID: ...)" begins the lines of a GPU, such as " Link 0: 26.562 GB/s".
_NVLINK_GPU, _NVLINK = re.compile(r"^GPU \d+:"), re.compile(r"^\s+Link \d+: (\d+(?:\.\d+)?) GB/s")
_TIMEOUT_SECS = 20.0
_MEBIBYTES = re.compile(r"(\d+)( MiB)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class DriverGpu:
    """A GPU; None for what the driver does not tell."""

    name: str | None
    memory_bytes: int | None
    driver: str | None


@dataclasses.dataclass(frozen=True)
class GpuLink:
    """The slowest link that data between the GPUs of this machine has to pass, in one direction."""

    kind: Literal["NVLink", "PCIe"]
    bytes_per_sec: float
    description: str


def list_driver_gpus() -> list[DriverGpu] | None:
    """List the GPUs in the driver's order; None where nvidia-smi is not there or fails."""
    table = output_of("nvidia-smi", *_QUERY, timeout_secs=_TIMEOUT_SECS)
    return None if table is None else [gpu for line in table.splitlines() if (gpu := _read_line(line)) is not None]


def _read_line(line: str) -> DriverGpu | None:
    name, *others = [cell.strip() for cell in next(csv.reader([line]), [""])]
    driver = others[-1] if others else ""
    if len(others) > 2 or not (_VERSION.fullmatch(driver) or _UNKNOWN.fullmatch(driver)):
        return None
    memory = _MEBIBYTES.fullmatch(others[0]) if len(others) == 2 else None
    return DriverGpu(
        name=None if not name or _UNKNOWN.fullmatch(name) else name,
        memory_bytes=int(memory[1]) * 2**20 if memory else None,
        driver=driver if _VERSION.fullmatch(driver) else None,
    )


def find_gpu_link() -> GpuLink | None:
    """Return the link between the GPUs: NVLink if it connects every pair, else PCIe; None if the driver does not tell.

    The speeds are those that the links are made for. Links in use are not measured.
    """
    if (nvlink := _find_nvlink()) is not None:
        return nvlink
    table = output_of("nvidia-smi", *_PCIE_QUERY, timeout_secs=_TIMEOUT_SECS) or ""
    cells = [line.replace(" ", "").split(",") for line in table.splitlines()]
    lanes = [(int(c[0]), int(c[1])) for c in cells if len(c) == 2 and c[0].isdecimal() and c[1].isdecimal()]
    known = [
        (_PCIE_LANE[generation] * width, generation, width) for generation, width in lanes if generation in _PCIE_LANE
    ]
    if not known:
        return None
    speed, generation, width = min(known)
    return GpuLink("PCIe", 1e9 * speed, f"PCIe {generation} x{width} ({speed:.1f} GB/s each way)")


def _find_nvlink() -> GpuLink | None:
    status = output_of("nvidia-smi", "nvlink", "--status", timeout_secs=_TIMEOUT_SECS) or ""
    topology = output_of("nvidia-smi", "topo", "-m", timeout_secs=_TIMEOUT_SECS) or ""
    links: list[list[float]] = []
    for line in status.splitlines():
        if _NVLINK_GPU.match(line):
            links.append([])
        elif links and (found := _NVLINK.match(line)):
            links[-1].append(float(found[1]))
    if not links or not all(links) or not _is_connected_by_nvlink(topology, len(links)):
        return None
    slowest = min(links, key=sum)
    speed = sum(slowest)
    return GpuLink("NVLink", 1e9 * speed, f"{len(slowest)} NVLinks ({speed:.0f} GB/s each way)")


def _is_connected_by_nvlink(topology: str, num_gpus: int) -> bool:
    """Read the matrix of `nvidia-smi topo -m`: a row "GPU0  X  NV18 ..." for each GPU, with a cell for each other."""
    rows = [line.split() for line in topology.splitlines()]
    cells = [row[1 : num_gpus + 1] for row in rows if row and re.fullmatch(r"GPU\d+", row[0]) and "X" in row]
    return len(cells) == num_gpus and all(
        len(row) == num_gpus and all(cell.startswith("NV") for j, cell in enumerate(row) if j != i)
        for i, row in enumerate(cells)
    )
