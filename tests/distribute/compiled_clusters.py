"""What ran in this process, from a profile."""

import pathlib
import re

from tensorflow.tsl.profiler.protobuf import xplane_pb2


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
