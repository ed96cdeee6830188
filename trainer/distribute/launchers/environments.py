"""The environment variables that tell a worker its rank and how to reach the others: Horovod's, or TF_CONFIG."""

import collections
import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from trainer.distribute.launchers.external import RANK_VARIABLES
from trainer.distribute.launchers.hosts import WorkerSlot
from trainer.errors import DeviceError
from trainer.system.private_api.horovod_server import make_slot, rendezvous_server

# Settings of TensorFlow, XLA, NCCL and this project that a user gave to the launcher are meant for the workers.
_FORWARDED_PREFIXES = ("TF_", "XLA_", "KERAS_", "NCCL_", "HOROVOD_", "OMP_", "TRAINER_", "CUDA_")
# The index of the GPU that a worker takes, if the launcher starts one worker for each GPU of its host.
LOCAL_INDEX_VARIABLE = "TRAINER_LOCAL_INDEX"
# Variables of Terraform, some of which hold secrets.
_NOT_FORWARDED_PREFIXES = ("TF_VAR_", "TF_TOKEN_", "TF_CLI_")
# Gloo's own 30 s are short for workers that start on busy machines or slow disks; the guards notice lost workers.
GLOO_TIMEOUT_VARIABLE = "HOROVOD_GLOO_TIMEOUT_SECONDS"
_GLOO_TIMEOUT_SECS = "300"


class Endpoint(Protocol):
    """The network address of a worker, as its guard reports it; a dry run has placeholders instead."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int | str: ...
    @property
    def interface(self) -> str: ...
    @property
    def launcher_address(self) -> str: ...


def forwarded_variables() -> dict[str, str]:
    """Return the variables of this process's environment that workers on other machines get as well."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_FORWARDED_PREFIXES)
        and not name.startswith(_NOT_FORWARDED_PREFIXES)
        and name not in RANK_VARIABLES
    }


def multiworker_environments(slots: Sequence[WorkerSlot], ready: Sequence[Endpoint]) -> list[dict[str, str]]:
    """Return the variables of each worker, with TF_CONFIG (tf.distribute.cluster_resolver.TFConfigClusterResolver)."""
    cluster = {"worker": [_join_address(found.address, found.port) for found in ready]}
    return [
        {
            **forwarded_variables(),
            LOCAL_INDEX_VARIABLE: str(slot.local_index),
            "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": slot.worker_index}}),
        }
        for slot in slots
    ]


@contextlib.contextmanager
def horovod_rendezvous() -> Iterator["Rendezvous"]:
    """Run the rendezvous server of Horovod's workers (Gloo) during the block; it must live as long as they do.

    Raises:
        DeviceError: Horovod is not installed.
    """
    with contextlib.ExitStack() as stack:
        try:
            server, port = stack.enter_context(rendezvous_server())
        except ImportError as e:
            raise DeviceError(f"Horovod is not installed ({e}); build it with: make horovod") from None
        yield Rendezvous(server, port)


class Rendezvous:
    """A running rendezvous server on `port`."""

    def __init__(self, server: Any, port: int) -> None:
        self._server = server
        self._port = port

    def environments(self, slots: Sequence[WorkerSlot], ready: Sequence[Endpoint]) -> list[dict[str, str]]:
        """Tell the server the slots, and return the variables of each worker."""
        self._server.init(_horovod_slots(slots))
        return horovod_environments(slots, ready, rendezvous_port=self._port)


def horovod_environments(
    slots: Sequence[WorkerSlot], ready: Sequence[Endpoint], *, rendezvous_port: int | str
) -> list[dict[str, str]]:
    """Return the variables of each worker (horovod/common/gloo/gloo_context.cc reads them)."""
    return [
        {
            GLOO_TIMEOUT_VARIABLE: _GLOO_TIMEOUT_SECS,
            **forwarded_variables(),
            "HOROVOD_HOSTNAME": slot.hostname,
            "HOROVOD_RANK": str(slot.rank),
            "HOROVOD_SIZE": str(slot.size),
            "HOROVOD_LOCAL_RANK": str(slot.local_rank),
            "HOROVOD_LOCAL_SIZE": str(slot.local_size),
            "HOROVOD_CROSS_RANK": str(slot.cross_rank),
            "HOROVOD_CROSS_SIZE": str(slot.cross_size),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": found.launcher_address,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(rendezvous_port),
            "HOROVOD_GLOO_IFACE": found.interface,
            "NCCL_SOCKET_IFNAME": found.interface,
        }
        for slot, found in zip(_horovod_slots(slots), ready, strict=True)
    ]


def _horovod_slots(slots: Sequence[WorkerSlot]) -> list[Any]:
    """Convert the slots to Horovod's `SlotInfo`."""
    # The k-th workers of all hosts make up a "cross" communicator.
    cross_sizes = collections.Counter(slot.local_index for slot in slots)
    cross_ranks: collections.Counter[int] = collections.Counter()
    infos = []
    for slot in slots:
        infos.append(
            make_slot(
                hostname=str(slot.host.name or "localhost"),
                rank=slot.worker_index,
                size=len(slots),
                local_rank=slot.local_index,
                local_size=slot.num_local,
                cross_rank=cross_ranks[slot.local_index],
                cross_size=cross_sizes[slot.local_index],
            )
        )
        cross_ranks[slot.local_index] += 1
    return infos


def _join_address(address: str, port: int | str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
