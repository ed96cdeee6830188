"""What XLA compiled in this process, from its own dump, and what ran, from a profile."""

import pathlib
import re

from tensorflow.tsl.profiler.protobuf import xplane_pb2

# A line of an HLO text: `%name = bf16[3,3,8,16]{3,2,1,0} convolution(...), ..., metadata={op_type="Conv2D" ...`.
_CONVOLUTION = re.compile(r"= (\w+)\[[\d,]*\]\S* convolution\(.*op_type=\"(\w+)\"")


def dump_flags(dump_dir: pathlib.Path) -> str:
    """XLA_FLAGS that keep the HLO of every module that is compiled; they count when XLA is first used."""
    return f"--xla_dump_to={dump_dir} --xla_dump_hlo_as_text"


def compiled_convolutions(dump_dir: pathlib.Path, *, seen: set[pathlib.Path]) -> list[tuple[str, str]]:
    """The (operation, dtype) of the convolutions of the modules that are not in `seen`, which grows by them.

    As they were before XLA's optimisations: on CPUs, these compute bfloat16 in float32.
    """
    modules = set(dump_dir.glob("*.before_optimizations.txt")) - seen
    seen |= modules
    found = [match for module in modules for match in _CONVOLUTION.findall(module.read_text())]
    return sorted((operation, dtype) for dtype, operation in found)


def count_executions(profile_dir: pathlib.Path) -> tuple[int, int]:
    """How often the profiled process ran a compiled module, and how often a convolution outside of any."""
    (recorded,) = profile_dir.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(recorded.read_bytes())
    names = [
        plane.event_metadata[event.metadata_id].name
        for plane in space.planes
        for line in plane.lines
        for event in line.events
    ]
    # The kernel of an operation is recorded as `name of the operation:type of the kernel`.
    return (
        sum(name.startswith("CpuExecutable::Execute") for name in names),
        sum(bool(re.search(r":\w*Conv2D\w*$", name)) for name in names),
    )
