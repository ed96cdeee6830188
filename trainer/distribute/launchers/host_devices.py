"""Ask the hosts of a job for their GPUs, which may differ from those of the machine that launches the job.

The question is a short job of its own: on every host a guard starts this module, as it would start a worker, with the
variables that a worker gets. TensorFlow answers there in one line of JSON.
"""

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from trainer.distribute.launchers.environments import forwarded_variables
from trainer.distribute.launchers.hosts import Host, WorkerSlot
from trainer.distribute.launchers.supervisor import SupervisorOptions
from trainer.distribute.launchers.waiting import told
from trainer.distribute.launchers.worker import Worker
from trainer.errors import DeviceError
from trainer.system.child_python import python_command

_MODULE = "trainer.distribute.launchers.host_devices"
# For TensorFlow to start on a host that has answered.
_ANSWER_SECS = 300.0
_HOROVOD = "--horovod"
_ANSWER = "devices of this host: "


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostDevices:
    """The GPUs of a host.

    Attributes:
        compute_capabilities: of each GPU that TensorFlow finds.
        has_nccl: True if the Horovod there was built with NCCL; None if there is none, or it was not asked for.
    """

    compute_capabilities: list[tuple[int, int]]
    has_nccl: bool | None


def find_own_devices(*, wants_horovod: bool) -> HostDevices:
    """Return the GPUs of this machine that this process sees."""
    from trainer.distribute import horovod
    from trainer.system import tf_runtime

    return HostDevices(
        compute_capabilities=tf_runtime.list_compute_capabilities(tf_runtime.list_gpus()),
        has_nccl=horovod.has_nccl() if wants_horovod else None,
    )


def ask_hosts(
    hosts: Sequence[Host], options: SupervisorOptions, *, wants_horovod: bool, note: Callable[[str], None]
) -> dict[Host, HostDevices | DeviceError]:
    """Return the GPUs of each of `hosts`, or the error if it cannot be asked."""
    names = ", ".join(map(str, hosts))
    with told(note, lambda: f"asking {names} which GPUs are there; --device cpu needs no asking"):
        return asyncio.run(_ask_all(hosts, options, [_HOROVOD] if wants_horovod else []))


async def _ask_all(
    hosts: Sequence[Host], options: SupervisorOptions, arguments: Sequence[str]
) -> dict[Host, HostDevices | DeviceError]:
    async def ask(host: Host) -> HostDevices | DeviceError:
        try:
            return await _ask(host, options, arguments)
        except DeviceError as e:
            return e

    return dict(zip(hosts, await asyncio.gather(*map(ask, hosts)), strict=True))


async def _ask(host: Host, options: SupervisorOptions, arguments: Sequence[str]) -> HostDevices:
    slot = WorkerSlot(host=host, worker_index=0, local_index=0, num_local=1)
    worker = Worker(
        slot,
        ssh_options=options.ssh_options,
        log_file=None,
        show=lambda _: None,
        lease_secs=options.host_timeout_secs,
    )
    await worker.open()
    try:
        await worker.wait_until_ready(options.start_timeout_secs)
        async with asyncio.timeout(_ANSWER_SECS):
            ended = await worker.run(python_command(_MODULE, *arguments), forwarded_variables(), None)
    except TimeoutError:
        raise DeviceError(f"TensorFlow did not start on {host} within {_ANSWER_SECS:g} s; see what keeps it") from None
    finally:
        await worker.close()
    lines = [line.removeprefix(_ANSWER) for line in worker.last_lines if line.startswith(_ANSWER)]
    if not lines:
        words = " ".join(" ".join(worker.last_lines).split())[-500:] or "it printed nothing"
        raise DeviceError(f"{host} cannot say which GPUs it has: what asks there {ended} ({words}); mend that first")
    return _of_json(json.loads(lines[-1]))


def _of_json(content: dict[str, Any]) -> HostDevices:
    capabilities = [(int(major), int(minor)) for major, minor in content["compute_capabilities"]]
    return HostDevices(compute_capabilities=capabilities, has_nccl=content["has_nccl"])


def main() -> None:
    """Print the GPUs of this machine."""
    from trainer.system import tf_runtime

    tf_runtime.configure()
    found = find_own_devices(wants_horovod=_HOROVOD in sys.argv)
    sys.stdout.write(_ANSWER + json.dumps(dataclasses.asdict(found)) + "\n")


if __name__ == "__main__":
    main()
