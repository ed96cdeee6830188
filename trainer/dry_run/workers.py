"""The processes of a run: what starts each, by the code that will start it.

What only the hosts can say, once they are asked, stands in angle brackets, such as <port of worker 0>.
"""

import dataclasses
import re
import sys
from collections.abc import Iterable

from trainer.distribute.elastic import options as request
from trainer.distribute.elastic.generation import HostSlot
from trainer.distribute.launchers import channel
from trainer.distribute.launchers.environments import (
    forwarded_variables,
    horovod_environments,
    multiworker_environments,
)
from trainer.distribute.launchers.external import find_external_worker
from trainer.distribute.launchers.guard import own_variables
from trainer.distribute.launchers.hosts import WorkerSlot
from trainer.distribute.launchers.supervisor import SupervisorOptions
from trainer.distribute.launchers.worker import guard_command
from trainer.dry_run.section import Section
from trainer.launch import job
from trainer.launch.plan_run import PlannedRun
from trainer.run.claim import COMMAND_VARIABLE

_FILE_DESCRIPTOR = "<file descriptor>"
_NAME_OF_LAUNCH = "<name of the launch>"
_FILLED_IN = re.compile(r"<[a-z][^<>]*>")
_ANSWERS = ("--dry-run", "--json")


class WorkerStart(Section):
    """One process that trains.

    guard: what the launcher starts first, here or by ssh, and then hands the command and the environment; none where
    this very process trains, and for a host that is not there yet. environment: what is set on top of what the host
    has; an elastic worker is told its rank later, and again whenever the members change.
    """

    worker: int
    host: str
    guard: list[str] | None
    command: list[str]
    environment: dict[str, str]


class Workers(Section):
    """started_by: "this command", "itself" where it trains alone, or the variable that says who has started it.

    filled_in: what stands in angle brackets, and is known only once the hosts have been asked.
    """

    started_by: str
    filled_in: list[str]
    starts: list[WorkerStart]


def list_workers(planned: PlannedRun, *, run_dir: str) -> Workers:
    """Every worker that a launch with the arguments of this process would start, or this process alone.

    Raises:
        DeviceError: Horovod is asked for and not installed.
    """
    starts = _starts_of_job(planned, run_dir) if planned.worker_slots else [_start_of_this_process(planned)]
    worker = find_external_worker()
    started_by = (
        "this command" if planned.worker_slots else "itself" if worker is None or worker.num_workers == 1 else worker.by
    )
    texts = [text for start in starts for text in [*start.command, *start.environment.values()]]
    return Workers(started_by=started_by, filled_in=_find_filled_in(texts), starts=starts)


@dataclasses.dataclass(frozen=True)
class _NotAskedYet:
    """Implements `Endpoint` of a host that nobody has asked."""

    worker_index: int

    @property
    def address(self) -> str:
        return f"<address of worker {self.worker_index}>"

    @property
    def port(self) -> str:
        return f"<port of worker {self.worker_index}>"

    @property
    def interface(self) -> str:
        return f"<network interface of worker {self.worker_index}>"

    @property
    def launcher_address(self) -> str:
        return f"<address of the launcher for worker {self.worker_index}>"


def _starts_of_job(planned: PlannedRun, run_dir: str) -> list[WorkerStart]:
    slots, config = planned.worker_slots, planned.config.distribute
    arguments = job.worker_arguments(
        planned.arguments or sys.argv[1:],
        run_dir=run_dir,
        dataset_dir=planned.plan.data.dataset_dir,
        recipe=planned.recipe,
        devices=planned.device_arguments,
    )
    endpoints = [_NotAskedYet(slot.worker_index) for slot in slots]
    if request.is_elastic(config):
        # Horovod's variables come to a worker that is already there, anew for every generation.
        environments = [
            {
                **request.worker_environment(HostSlot(slot.host.name, slot.local_index)),
                channel.VARIABLE: _FILE_DESCRIPTOR,
            }
            for slot in slots
        ]
    elif config.strategy == "horovod":
        environments = horovod_environments(slots, endpoints, rendezvous_port="<port of the launcher>")
    else:
        environments = multiworker_environments(slots, endpoints)
    options = job.supervisor_options(config)
    return [
        WorkerStart(
            worker=slot.worker_index,
            host=str(slot.host),
            guard=_guard_of(slot, options),
            command=job.worker_command(arguments),
            environment={**environment, COMMAND_VARIABLE: _NAME_OF_LAUNCH, **own_variables(_FILE_DESCRIPTOR)},
        )
        for slot, environment in zip(slots, environments, strict=True)
    ]


def _guard_of(slot: WorkerSlot, options: SupervisorOptions) -> list[str] | None:
    if slot.host.name == request.HOST_TO_COME:
        return None
    return guard_command(slot.host, ssh_options=options.ssh_options, lease_secs=options.host_timeout_secs)


def _start_of_this_process(planned: PlannedRun) -> WorkerStart:
    return WorkerStart(
        worker=planned.topology.worker_index,
        host="this machine",
        guard=None,
        command=[argument for argument in sys.orig_argv if argument not in _ANSWERS],
        environment=forwarded_variables(),
    )


def _find_filled_in(texts: Iterable[str]) -> list[str]:
    """Each once, in the order of their first appearance."""
    return list(dict.fromkeys(found for text in texts for found in _FILLED_IN.findall(text)))
