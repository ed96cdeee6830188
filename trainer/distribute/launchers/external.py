"""Whether somebody else started this process as one worker of several, and as which: mpirun, Slurm, Kubernetes.

HOROVOD_RANK                    horovodrun, or this project's launcher
OMPI_COMM_WORLD_RANK            Open MPI's mpirun, and with it the MPI operator
PMI_RANK                        Hydra: MPICH and Intel MPI
TF_CONFIG                       this project's launcher, JobSets and TFJobs
SLURM_PROCID                    srun, which names no place where the workers meet: they agree on one by arithmetic

A batch script of Slurm has the last as well, and is nobody's worker: it lacks what srun adds for the tasks of a step.
"""

import dataclasses
import json
import os
from collections.abc import Mapping

from trainer.errors import ConfigError, DeviceError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExternalPlace:
    """This process as its starter sees it. `by` is the variable that says so."""

    by: str
    worker_index: int
    num_workers: int
    local_index: int


_KINDS = (
    ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    # Last: under srun, mpirun and horovodrun set theirs as well, and know better.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


def find_place(environment: Mapping[str, str] = os.environ) -> ExternalPlace | None:
    """The place of this process; None where nobody started it as one of several.

    Raises:
        ConfigError: a variable is set and is not what it must be.
    """
    if "TF_CONFIG" in environment:
        return _of_tf_config(environment["TF_CONFIG"])
    for rank, size, local_rank in _KINDS:
        if rank in environment and size in environment:
            # So is a shell that srun has started.
            if rank == "SLURM_PROCID" and environment[size] == "1":
                continue
            return ExternalPlace(
                by=rank,
                worker_index=_whole_number(environment, rank),
                num_workers=_whole_number(environment, size),
                local_index=_whole_number(environment, local_rank) if local_rank in environment else 0,
            )
    return None


def check_size(num_workers: int, environment: Mapping[str, str] = os.environ) -> None:
    """Compares the size of the job as a library sees it with what its starter says.

    Raises:
        DeviceError: they differ; each process would train alone, and all would write to one run directory.
    """
    place = find_place(environment)
    # An elastic job changes its size without a change of HOROVOD_SIZE.
    if place is not None and place.by != "HOROVOD_RANK" and place.num_workers != num_workers:
        raise DeviceError(
            f"{place.by} makes this process worker {place.worker_index} of {place.num_workers}, but Horovod has found "
            f"{num_workers}; it was built for another MPI, or for none (see trainer doctor): use mpirun of that MPI, "
            "horovodrun, or trainer launch --hosts"
        )


def _of_tf_config(text: str) -> ExternalPlace | None:
    expected = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        content = json.loads(text)
        if not content:
            return None
        workers, task = content["cluster"]["worker"], content["task"]
        index = int(task["index"])
        kind = task["type"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"TF_CONFIG is {text!r}; expected {expected}") from None
    if kind != "worker" or not 0 <= index < len(workers):
        raise ConfigError(
            f"TF_CONFIG makes this process {kind} {index} of {len(workers)} workers; expected {expected}: the chief is "
            "worker 0, and there are no other kinds"
        )
    # Where others of the cluster run on this host, they come before this one in the list.
    host = workers[index].rpartition(":")[0]
    local_index = sum(worker.rpartition(":")[0] == host for worker in workers[:index])
    return ExternalPlace(by="TF_CONFIG", worker_index=index, num_workers=len(workers), local_index=local_index)


def _whole_number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment; expected a whole number, as the launcher sets it")
    return int(text)
