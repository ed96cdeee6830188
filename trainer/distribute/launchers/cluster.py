"""Connect the workers of `MultiWorkerMirroredStrategy` by the addresses of TF_CONFIG or Slurm."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import tensorflow as tf

from trainer.distribute.launchers.external import ExternalWorker
from trainer.distribute.launchers.proxies import describe_proxies, go_directly
from trainer.distribute.launchers.waiting import told
from trainer.errors import DeviceError
from trainer.system.private_api.tensorflow_cluster import (
    configure_coordination,
    expand_hostlist,
    expand_tasks_per_node,
)

# For the other workers to start: they may still be pulling an image.
JOIN_TIMEOUT_SECS = 600.0
# A worker that is silent for so long counts as lost.
_HEARTBEAT_TIMEOUT_SECS = 100
# The number of workers that may connect to another one at the same time.
_MAX_CALLERS = 4096
# For all workers to reach the end of the job.
_LEAVE_TIMEOUT_SECS = 60
# Below the ephemeral ports of Linux.
_SLURM_PORTS = range(20_000, 32_000)


def join_cluster(
    worker: ExternalWorker, *, timeout_secs: float = JOIN_TIMEOUT_SECS, note: Callable[[str], None] = lambda _: None
) -> Any:
    """Wait for all workers and return the strategy over them; `note` is called if some take long to come.

    Raises:
        DeviceError: this worker's port is in use, or some of the others have not come within `timeout_secs`.
    """
    resolver = find_resolver(worker)
    addresses = list(resolver.cluster_spec().as_dict()["worker"])
    own = addresses[worker.worker_index]
    go_directly(addresses)
    with _presence(own, worker):
        _wait_for_others(addresses, worker, timeout_secs, note)
    # By default TensorFlow waits an hour for a worker that does not come; it keeps settings that are made before.
    configure_coordination(
        num_workers=len(addresses),
        join_timeout_secs=timeout_secs,
        heartbeat_timeout_secs=_HEARTBEAT_TIMEOUT_SECS,
        leave_timeout_secs=_LEAVE_TIMEOUT_SECS,
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except tf.errors.UnknownError as e:
        if "Could not start gRPC server" not in e.message:
            raise
        raise _port_in_use(own, worker) from None
    except (tf.errors.DeadlineExceededError, tf.errors.UnavailableError):
        raise _no_answer([0], addresses, worker, timeout_secs) from None


def find_resolver(worker: ExternalWorker) -> Any:
    """Return the cluster resolver for TF_CONFIG, or for Slurm's variables of this step.

    Raises:
        DeviceError: the variables that Slurm sets for a step are not all there, or say what this cannot follow.
    """
    resolvers = tf.distribute.cluster_resolver
    if worker.by == "TF_CONFIG":
        return resolvers.TFConfigClusterResolver()
    cluster = tf.train.ClusterSpec({"worker": slurm_addresses(os.environ)})
    return resolvers.SimpleClusterResolver(cluster, task_type="worker", task_id=worker.worker_index, rpc_layer="grpc")


def slurm_addresses(environment: Mapping[str, str]) -> list[str]:
    """Return the address of every task of a Slurm step, by rank; every task computes the same addresses.

    TensorFlow's own SlurmClusterResolver sorts the nodes by name, where Slurm numbers its tasks in the order of the
    list (node2 before node10), and asks nvidia-smi on machines that have none.

    Raises:
        DeviceError: see `find_resolver`.
    """
    missing = [name for name in ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE") if name not in environment]
    if missing:
        raise DeviceError(f"Slurm has set no {' and no '.join(missing)} for this task; start the workers with srun")
    distribution = environment.get("SLURM_DISTRIBUTION", "block")
    if not distribution.startswith("block"):
        raise DeviceError(
            f"srun distributes the tasks in the order {distribution!r}, which the addresses of the workers do not "
            "follow; start them with srun --distribution=block"
        )
    nodes = expand_hostlist(environment["SLURM_STEP_NODELIST"])
    num_tasks = expand_tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    # Jobs on one node must use different ports.
    step = int(environment.get("SLURM_JOB_ID", "0")) + int(environment.get("SLURM_STEP_ID", "0"))
    first = _SLURM_PORTS[step * 64 % (len(_SLURM_PORTS) - max(num_tasks))]
    return [f"{node}:{first + i}" for node, count in zip(nodes, num_tasks, strict=True) for i in range(count)]


@contextlib.contextmanager
def _presence(address: str, worker: ExternalWorker) -> Iterator[None]:
    """Listen at this worker's `address` during the block, so that the others see that it has started.

    TensorFlow listens only once it waits for the others itself, in C++ code that lets nothing else in the process run,
    and for an hour, whatever it is told.
    """
    port = address.rpartition(":")[2]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise DeviceError(f"{worker.by} gives worker {worker.worker_index} the address {address}; expected HOST:PORT")
    is_dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual else socket.AF_INET
    try:
        listener = socket.create_server(("", int(port)), family=family, dualstack_ipv6=is_dual, backlog=_MAX_CALLERS)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise _port_in_use(address, worker) from None
        raise DeviceError(
            f"this host does not let worker {worker.worker_index} listen on port {port}, which {worker.by} gives it "
            f"({e.strerror}); give the workers ports above 1023"
        ) from None
    with listener:
        yield


def _wait_for_others(
    addresses: list[str], worker: ExternalWorker, timeout_secs: float, note: Callable[[str], None]
) -> None:
    """Return once all other workers listen."""
    missing = [i for i in range(len(addresses)) if i != worker.worker_index]
    give_up_at = time.monotonic() + timeout_secs
    with told(note, lambda: _describe_wait(missing, addresses, worker, timeout_secs)):
        while missing := [i for i in missing if not _listens(addresses[i], give_up_at)]:
            if time.monotonic() >= give_up_at:
                raise _no_answer(missing, addresses, worker, timeout_secs)
            time.sleep(0.2)


def _listens(address: str, give_up_at: float) -> bool:
    host, _, port = address.rpartition(":")
    left_secs = max(0.1, min(2.0, give_up_at - time.monotonic()))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=left_secs).close()
    except OSError:
        return False
    return True


def _no_answer(missing: list[int], addresses: list[str], worker: ExternalWorker, timeout_secs: float) -> DeviceError:
    proxies = describe_proxies()
    around = f", and around the proxy ({proxies}; the addresses were added to no_proxy)" if proxies else ""
    return DeviceError(
        f"worker {worker.worker_index} has waited {timeout_secs:g} s for {_name(missing, addresses)}, without an "
        f"answer; see that every worker was started, and that they reach each other by the addresses that {worker.by} "
        f"gives{around}; give those that start later more time with --set distribute.start_timeout_secs=1800, or, "
        f"where nobody starts them, put {worker.without} before the command"
    )


def _describe_wait(missing: list[int], addresses: list[str], worker: ExternalWorker, timeout_secs: float) -> str:
    proxies = describe_proxies()
    return (
        f"worker {worker.worker_index} waits for {_name(missing, addresses)}, up to {timeout_secs:g} s: "
        f"{worker.evidence}{f' ({proxies}, which the workers go around)' if proxies else ''}"
    )


def _name(workers: list[int], addresses: list[str]) -> str:
    names = [f"worker {i} at {addresses[i]}" for i in workers]
    return ", ".join([*names[:8], *([f"and {len(names) - 8} more"] if len(names) > 8 else [])])


def _port_in_use(address: str, worker: ExternalWorker) -> DeviceError:
    port = int(address.rpartition(":")[2])
    listeners = [found for found in psutil.net_connections("tcp") if found.laddr and found.laddr.port == port]
    pids = sorted({found.pid for found in listeners if found.pid and found.status == psutil.CONN_LISTEN})
    by = f" by process {pids[0]} ({psutil.Process(pids[0]).name()})" if pids else ""
    return DeviceError(
        f"port {port} of this host, where {worker.by} wants worker {worker.worker_index}, is in use{by}; end that "
        "process, or give the workers other ports"
    )
