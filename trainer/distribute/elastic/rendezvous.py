"""The rendezvous of one generation: a Horovod server of its own, so that no message of an earlier one is mixed in."""

import contextlib
import http.client
from collections.abc import Sequence

from trainer.distribute.launchers.environments import GLOO_TIMEOUT_VARIABLE, horovod_rendezvous
from trainer.distribute.launchers.hosts import WorkerSlot
from trainer.distribute.launchers.worker import Ready

# The scope in which a Horovod that is initialized again asks for its rank (horovod/common/gloo/gloo_context.cc).
_SCOPE = "rank_and_size"
_FIELDS = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")


class GenerationRendezvous:
    """A running Horovod rendezvous of one generation.

    Attributes:
        environments: the variables of each member, in the order of `worker_slots`.
    """

    def __init__(self, worker_slots: Sequence[WorkerSlot], ready: Sequence[Ready]) -> None:
        """Start the server.

        Raises:
            DeviceError: Horovod is not installed.
        """
        self._stack = contextlib.ExitStack()
        rendezvous = self._stack.enter_context(horovod_rendezvous())
        found = rendezvous.environments(worker_slots, ready)
        # Workers of elastic jobs got a much shorter timeout at their start.
        for environment in found:
            environment.pop(GLOO_TIMEOUT_VARIABLE)
        # In its elastic mode, Horovod gives up a GPU operation whose peer is lost instead of waiting for ever.
        self.environments = [{**environment, "HOROVOD_ELASTIC": "1"} for environment in found]
        for environment in found:
            _publish_rank(environment)

    def close(self) -> None:
        """Stop the server."""
        self._stack.close()


def _publish_rank(environment: dict[str, str]) -> None:
    key = f"{environment['HOROVOD_HOSTNAME']}:{environment['HOROVOD_LOCAL_RANK']}"
    answer = ",".join(environment[f"HOROVOD_{name}"] for name in _FIELDS)
    connection = http.client.HTTPConnection("127.0.0.1", int(environment["HOROVOD_GLOO_RENDEZVOUS_PORT"]), timeout=10)
    try:
        connection.request("PUT", f"/{_SCOPE}/{key}", answer.encode())
        connection.getresponse().read()
    finally:
        connection.close()
