"""Check the other hosts of a job: ssh reaches each, with the same software and the same time."""

import asyncio
import time
from collections.abc import Iterator, Sequence

from trainer.distribute.launchers.hosts import Host, WorkerSlot
from trainer.distribute.launchers.versions import differences, installed_versions
from trainer.distribute.launchers.worker import Ready, Worker
from trainer.doctor.finding import Finding, ok, problem, warning
from trainer.errors import DeviceError

_TIMEOUT_SECS = 30.0
_MAX_CLOCK_OFFSET_SECS = 1.0


def check_hosts(hosts: Sequence[Host], ssh_options: Sequence[str]) -> Iterator[Finding]:
    """Start the guard of a launch on each host, and compare the software and the clock that it reports."""
    for host in hosts:
        started = time.time()
        try:
            ready = asyncio.run(_ask(host, ssh_options))
        except DeviceError as e:
            yield problem(f"host {host}", str(e), "fix this before the launch")
            continue
        secs = time.time() - started
        different = differences({"this machine": installed_versions(), str(host): ready.versions})
        if different:
            yield problem(f"host {host}", "; ".join(different), "install the same on all hosts")
            continue
        offset = abs(ready.time - (started + secs / 2))
        # The answer may have taken any part of the time that the question took.
        if offset > _MAX_CLOCK_OFFSET_SECS + secs / 2:
            yield warning(f"host {host}", f"its clock is off by {offset:.1f} s", "start a time service on all hosts")
            continue
        yield ok(f"host {host}", f"{ready.host}, {ready.address} on {ready.interface}, answers in {secs:.1f} s")


async def _ask(host: Host, ssh_options: Sequence[str]) -> Ready:
    slot = WorkerSlot(host=host, worker_index=0, local_index=0, num_local=1)
    worker = Worker(slot, ssh_options=ssh_options, log_file=None, show=lambda line: None)
    await worker.open()
    try:
        return await worker.wait_until_ready(_TIMEOUT_SECS)
    finally:
        await worker.close()
