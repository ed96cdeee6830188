"""The rank of this process if an external launcher started it as one of several workers: mpirun, Slurm, Kubernetes.

TF_CONFIG                       this project's launcher, JobSets and TFJobs
HOROVOD_RANK                    horovodrun, or this project's launcher
OMPI_COMM_WORLD_RANK            Open MPI's mpirun, and with it the MPI operator
PMI_RANK                        Hydra: MPICH and Intel MPI
MV2_COMM_WORLD_RANK             MVAPICH2
JSM_NAMESPACE_RANK              LSF's jsrun
FLUX_TASK_RANK                  Flux
SLURM_PROCID                    srun, which names no place where the workers meet: they agree on one by arithmetic
RANK                            torchrun, and whoever speaks like it; nothing here can meet through it

A batch script of Slurm has SLURM_PROCID as well, and is nobody's worker: it lacks what srun adds for the tasks of a
step. Neither is a shell with a terminal that srun has opened, nor a single process under any of them, where more than
one is wanted: the command then starts its workers itself.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping

from trainer.errors import ConfigError, DeviceError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExternalWorker:
    """This process as a worker of the external launcher that started it.

    Attributes:
        by: the variable that says so.
        evidence: the values that say so, as "OMPI_COMM_WORLD_SIZE is 2".
        without: a prefix for a command that is to run as if no launcher had started it, as "env -u RANK".
    """

    by: str
    worker_index: int
    num_workers: int
    local_index: int
    evidence: str = dataclasses.field(default="", compare=False)
    without: str = dataclasses.field(default="", compare=False)


OF_SEVERAL_PROCESSES = ("multiworker", "horovod")
_TF_CONFIG = "TF_CONFIG"
_KINDS = (
    ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    # After the others: under srun, mpirun and horovodrun set their own variables, and those count.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
)
# The variables through which the workers of multiworker can find each other; and those through which none can.
_OF_MULTIWORKER = (_TF_CONFIG, "SLURM_PROCID")
_OF_NO_STRATEGY = ("RANK",)
# Slurm numbers batch scripts, the shells of allocations and the like as steps from here on (slurm.h).
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# Each variable means that there are other processes if it is above this. PMIx sets no number of processes.
_HALVES = {
    "PMIX_RANK": 0,
    **{rank: 0 for rank, _, _ in _KINDS if rank not in _OF_NO_STRATEGY},
    **{size: 1 for rank, size, _ in _KINDS if rank not in (*_OF_NO_STRATEGY, "SLURM_PROCID")},
}
# A launcher sets these for its own processes; they must not reach the workers that such a process starts in turn.
RANK_VARIABLES = frozenset({_TF_CONFIG, "PMIX_RANK", *(name for kind in _KINDS for name in kind)})


def find_external_worker(environment: Mapping[str, str] = os.environ) -> ExternalWorker | None:
    """Return this process as a worker of its external launcher; None if there is none.

    If there are several launchers, the one of more than one process counts, and of those the innermost.

    Raises:
        ConfigError: a variable is set and is not what it must be.
    """
    workers = list(_list_external_workers(environment))
    return next((worker for worker in workers if worker.num_workers > 1), workers[0] if workers else None)


def check_alone(strategy: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to train in this process alone if it was started as one of several.

    Raises:
        ConfigError: `strategy` is one of a single process; each process would train a model of its own.
    """
    if strategy in OF_SEVERAL_PROCESSES:
        return
    worker = find_external_worker(environment) or _find_partial_worker(environment)
    if worker is None or worker.num_workers == 1:
        return
    if worker.by in _OF_NO_STRATEGY:
        fix = "run the command once, with --strategy multiworker or horovod and --hosts or --replicas"
    else:
        fix = f"add --strategy {'multiworker' if worker.by in _OF_MULTIWORKER else 'horovod'}"
    raise ConfigError(
        f"{worker.evidence}, so this process was started as one of several, but --strategy is {strategy}, with which "
        f"each of them would make a training of its own; {fix}, or, where nobody started the others, put "
        f"{worker.without} before the command"
    )


def can_meet(strategy: str, worker: ExternalWorker) -> bool:
    """Return True if the workers of `strategy` can find each other by the variables of this external launcher."""
    return worker.by in _OF_MULTIWORKER if strategy == "multiworker" else worker.by not in _OF_NO_STRATEGY


def _list_external_workers(environment: Mapping[str, str]) -> Iterator[ExternalWorker]:
    """Yield this process as a worker of each external launcher, the innermost first."""
    if (of_tensorflow := _of_tf_config(environment.get(_TF_CONFIG, ""))) is not None:
        yield of_tensorflow
    for rank, usual_size, local_rank in _KINDS:
        size = _find_slurm_size(environment) if rank == "SLURM_PROCID" else usual_size
        if rank in environment and size in environment:
            if rank in _OF_NO_STRATEGY and not (environment[rank] + environment[size]).isdecimal():
                continue  # a name that may mean anything
            yield ExternalWorker(
                by=rank,
                worker_index=_whole_number(environment, rank),
                num_workers=_whole_number(environment, size),
                local_index=_whole_number(environment, local_rank) if local_rank in environment else 0,
                evidence=f"{size} is {environment[size]}",
                without=f"env -u {rank} -u {size}",
            )


def _find_slurm_size(environment: Mapping[str, str]) -> str:
    """Return the variable with the number of tasks of this Slurm step; "" if the process is no task of a step."""
    is_task_itself = environment.get("SLURM_TASK_PID") == str(os.getpid())
    if "SLURM_PTY_PORT" in environment and environment.get("SLURM_PROCID") == "0" and not is_task_itself:
        return ""  # typed into a shell that srun --pty has opened; the other tasks have no terminal, and have ended
    step = environment.get("SLURM_STEP_ID", "")
    is_ordinary_step = step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP
    size = "SLURM_NTASKS" if "SLURM_STEP_NUM_TASKS" not in environment and is_ordinary_step else "SLURM_STEP_NUM_TASKS"
    # A step of one task is, as a rule, the shell of an allocation.
    return "" if environment.get(size) == "1" else size


def _find_partial_worker(environment: Mapping[str, str]) -> ExternalWorker | None:
    """Return a worker if only a rank above 0 or only a number of processes above 1 is set: there are others as well."""
    for name, least in _HALVES.items():
        number = int(environment[name]) if environment.get(name, "").isdecimal() else 0
        if number > least:
            return ExternalWorker(
                by=name,
                worker_index=0,
                num_workers=2,
                local_index=0,
                evidence=f"{name} is {number}",
                without=f"env -u {name}",
            )
    return None


def check_size(num_workers: int, environment: Mapping[str, str] = os.environ) -> None:
    """Compare the size of the job that Horovod finds with that of the external launcher.

    Raises:
        DeviceError: they differ; each process would train alone, and all would write to one run directory.
    """
    worker = find_external_worker(environment)
    # An elastic job changes its size without a change of HOROVOD_SIZE.
    if "HOROVOD_ELASTIC" in environment or worker is None:
        return
    if worker.num_workers != num_workers:
        raise DeviceError(
            f"{worker.by} makes this process worker {worker.worker_index} of {worker.num_workers}, but Horovod has "
            f"found {num_workers}; it was built for another MPI, or for none (see trainer doctor): use mpirun of that "
            f"MPI, horovodrun, or trainer launch --hosts; where nobody started the others, put {worker.without} before "
            "the command"
        )


def _of_tf_config(text: str) -> ExternalWorker | None:
    expected = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        content = json.loads(text or "{}")
        if not content or not content.get("cluster"):
            return None
        workers, task = content["cluster"].get("worker", []), content["task"]
        if not workers and sum(map(len, content["cluster"].values())) == 1:
            return None  # a chief without workers, as managed services write it, is alone
        index = int(task["index"])
        kind = task["type"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"TF_CONFIG is {text!r}; expected {expected}") from None
    if kind != "worker" or not 0 <= index < len(workers):
        raise ConfigError(
            f"TF_CONFIG makes this process {kind} {index} of {len(workers)} workers; expected {expected}: the chief is "
            "worker 0, and there are no other kinds"
        )
    # Where others of the cluster run on this host, they come before this one in the list.
    host = workers[index].rpartition(":")[0]
    local_index = sum(worker.rpartition(":")[0] == host for worker in workers[:index])
    return ExternalWorker(
        by=_TF_CONFIG,
        worker_index=index,
        num_workers=len(workers),
        local_index=local_index,
        evidence=f"TF_CONFIG names {len(workers)} workers",
        without="env -u TF_CONFIG",
    )


def _whole_number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment; expected a whole number, as the launcher sets it")
    return int(text)
