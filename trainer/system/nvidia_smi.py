"""The GPUs that NVIDIA's driver lists.

nvidia-smi warns among its answers, and says [N/A], [Not Supported] or the like where a board, a driver or a MIG slice
has no value: such lines are left out, and such values are None.
"""

import csv
import dataclasses
import re

from trainer.system.programs import output_of

_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_UNKNOWN = re.compile(r"\[.*\]|N/A")
_VERSION = re.compile(r"\d+(\.\d+)+")
_MEBIBYTES = re.compile(r"(\d+)( MiB)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class DriverGpu:
    """A GPU; None for what the driver does not tell."""

    name: str | None
    memory_bytes: int | None
    driver: str | None


def list_driver_gpus() -> list[DriverGpu] | None:
    """List the GPUs in the driver's order; None where nvidia-smi is not there or fails."""
    table = output_of("nvidia-smi", *_QUERY, timeout_secs=20.0)
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
