"""Set up TensorFlow's coordination service, and read SLURM's lists of hosts and tasks."""

from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import (
    expand_hostlist,
    expand_tasks_per_node,
)
from tensorflow.python.eager import context

__all__ = ["configure_coordination", "expand_hostlist", "expand_tasks_per_node"]


def configure_coordination(
    *, num_workers: int, join_timeout_secs: float, heartbeat_timeout_secs: float, leave_timeout_secs: float
) -> None:
    """Set how long the workers of a job wait for each other; to be called before the strategy is made.

    `join_timeout_secs` is for the others to come, `heartbeat_timeout_secs` until a silent worker counts as lost, and
    `leave_timeout_secs` for the others to reach the end of the job.
    """
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(join_timeout_secs * 1000),
        heartbeat_timeout_in_ms=int(heartbeat_timeout_secs * 1000),
        shutdown_barrier_timeout_in_ms=int(leave_timeout_secs * 1000),
        coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=num_workers)],
    )
