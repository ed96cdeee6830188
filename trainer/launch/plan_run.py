"""Plan a run from its configuration: devices, dataset, plan and run directory; nothing is started."""

import dataclasses
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trainer.config.config import Config
from trainer.console.progress import task_progress
from trainer.data.dataset.manifest import is_prepared
from trainer.data.dataset.storage import DatasetPath, RemotePath, parse_path
from trainer.data.sources import check_unambiguous, is_source_name
from trainer.distribute.elastic import options
from trainer.distribute.job_devices import JobDevices
from trainer.distribute.launchers.hosts import WorkerSlot
from trainer.distribute.topology import Topology
from trainer.errors import ConfigError, DataError
from trainer.launch import job
from trainer.launch.extension import Extension, find_extension
from trainer.launch.replicas import claim_replicas, find_devices, find_topology
from trainer.model.backbones.saved_model import is_own_model
from trainer.model.head_choice import HeadChoice
from trainer.plan.plan import Plan, make_plan
from trainer.run import claim
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir
from trainer.system import tf_runtime

if TYPE_CHECKING:
    from trainer.data.preparation.auto_prepare import Preparation

RUNS_DIR = pathlib.Path("runs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run of which everything is decided and nothing is started."""

    config: Config
    topology: Topology
    plan: Plan
    run: RunDir
    # The slots of the workers that this process has to start; if there are none, it trains itself.
    worker_slots: Sequence[WorkerSlot] = ()
    # The devices of these workers; None if there are none.
    devices: JobDevices | None = None
    # The name of the recipe that was given or chosen, for the workers.
    recipe: str | None = None
    # False if `run` is a new name made from the time, which has yet to be claimed.
    is_run_known: bool = True
    resume: bool = True
    wait_secs: float = 0.0
    # The arguments of `trainer launch` for the workers; None: those of this command.
    arguments: Sequence[str] | None = None

    @property
    def identity(self) -> str:
        """The hash of everything that decides the trained weights."""
        return self.plan.identity(self.config)

    def check_run_dir(self) -> None:
        """Raise RunError if the run cannot begin or go on in its directory."""
        claim.check_run_dir(
            self.run,
            self.run.identity() if self.find_extension() else self.identity,
            resume=self.resume,
            may_be_held=self.wait_secs > 0,
            differences=lambda: claim.describe_differences(
                self.run, self.config, self.plan.run_info(self.config, self.run.path.name)
            ),
        )

    @property
    def device_arguments(self) -> list[str]:
        """The arguments that tell other hosts which devices, precision and XLA setting were decided."""
        return job.device_arguments(self.plan.replicas) if self.devices is not None and self.devices.are_asked else []

    def find_extension(self) -> Extension | None:
        """Return how a run that was planned for other epochs goes on to those asked for; see `find_extension`."""
        return find_extension(self.run, self.config, self.plan)

    @property
    def first_step(self) -> int:
        """The step that the run goes on from: that of its last checkpoint, or 0."""
        if extension := self.find_extension():
            return extension.first_step
        return max(CheckpointStore.of_run(self.run, self.config.checkpoint).steps(), default=0)


def plan_run(
    config: Config,
    *,
    run_dir: pathlib.Path | None,
    resume: bool,
    note: Callable[[str], None],
    recipe: str | None = None,
    wait_secs: float = 0.0,
    arguments: Sequence[str] | None = None,
    only_planned: bool = False,
) -> PlannedRun:
    """Decide devices, dataset, precision and run directory; a folder of images is prepared beside itself.

    Args:
        config: the configuration, with its recipe applied.
        run_dir: the run directory; None goes on with the newest unfinished run of this very configuration below
            `RUNS_DIR`, or names a new one there by the time.
        resume: False makes an existing run in `run_dir` an error.
        note: called with a sentence before what takes time.
        recipe: the name of the recipe of `config`, for the workers.
        wait_secs: how long to wait for another command that holds the run directory.
        arguments: the arguments of `trainer launch` for the workers; None: those of this command.
        only_planned: the plan will not be run, so that no cluster is joined for it.

    Raises:
        UsageError: what was asked for cannot be had; see the subclasses.
    """
    slots = job.find_worker_slots(config.distribute, num_gpus_found=len(tf_runtime.list_gpus()))
    if options.is_elastic(config.distribute):
        if config.train.on_non_finite == "rollback":
            raise ConfigError(
                "train.on_non_finite is rollback, which an elastic job does not have; use --set "
                "train.on_non_finite=stop, or leave --min-replicas and --host-discovery-script out"
            )
        options.check_batch(config.distribute, config.train.global_batch_size, num_slots=len(slots))
    devices = find_devices(config.distribute, slots, note)
    topology = find_topology(config.distribute, slots, devices, note)
    if not slots and not only_planned and is_own_model(config.model.backbone):
        # The plan reads the model, which starts TensorFlow.
        claim_replicas(topology, config.distribute, note)
    dataset_dir = find_dataset(config, note)
    own = tf_runtime.list_gpus()[: topology.num_local_replicas]
    capabilities = devices.compute_capabilities if devices else tf_runtime.list_compute_capabilities(own)
    plan = make_plan(config, dataset_dir, topology, capabilities, head_of_run=_head_of(run_dir))
    planned = PlannedRun(
        config=config,
        topology=topology,
        plan=plan,
        run=RunDir(run_dir or ""),
        worker_slots=slots,
        devices=devices,
        recipe=recipe,
        resume=resume,
        wait_secs=wait_secs,
        arguments=arguments,
    )
    if run_dir is not None:
        if topology.is_chief:
            planned.check_run_dir()
        return planned
    found = None
    if resume and topology.is_chief:
        found = claim.find_unfinished_run(
            RUNS_DIR,
            planned.identity,
            config,
            num_train_steps=plan.schedule.num_train_steps,
            note=note,
            may_be_held=wait_secs > 0,
        )
    return dataclasses.replace(planned, run=found or claim.name_new_run(RUNS_DIR), is_run_known=found is not None)


def find_dataset(config: Config, note: Callable[[str], None]) -> DatasetPath:
    """Return the prepared dataset of `data.path`; a folder of images is prepared beside itself.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = _locate_data(config)
    if isinstance(path, RemotePath) or is_prepared(path):
        return path
    # Fifty modules and Pillow, which a launch on a prepared dataset does not need.
    from trainer.data.preparation.auto_prepare import prepare_beside

    return prepare_beside(path, note=note, progress=task_progress)


def find_preparation(config: Config) -> "Preparation | None":
    """Return what `find_dataset` would have to prepare first, or None; write nothing, and raise the same errors."""
    path = _locate_data(config)
    if isinstance(path, RemotePath) or is_prepared(path):
        return None
    from trainer.data.preparation import auto_prepare

    return auto_prepare.find_preparation(path)


def _locate_data(config: Config) -> DatasetPath:
    text = config.data.path
    if text is None:
        raise DataError(
            "no dataset was named; give --data DATASET (or a folder with one folder of images per class), or write "
            "'data: {path: DATASET}' into ./trainer.yaml"
        )
    check_unambiguous(text)
    is_here = os.path.exists(text)
    if not is_here and is_source_name(text):
        raise DataError(
            f"{text} is a source of images, and no dataset yet; prepare it once: trainer prepare {shlex.quote(text)} "
            "--out DATASET, and give --data DATASET"
        )
    path = parse_path(text)
    # If a remote one is missing, reading its manifest raises the error.
    if not is_here and not isinstance(path, RemotePath):
        raise DataError(
            f"the dataset {path} does not exist; give a prepared dataset, or a folder with one folder of images a class"
        )
    return path


def _head_of(run_dir: pathlib.Path | None) -> HeadChoice | None:
    """Return what the last layer of the run in `run_dir` started from; None where there is no run."""
    if run_dir is None or not RunDir(run_dir).exists():
        return None
    info = RunDir(run_dir).info()
    return HeadChoice(info.head, info.to_last_layer)
