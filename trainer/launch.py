"""From a configuration to a run: finds the dataset and the run directory, plans, and trains."""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from trainer import atomic, elastic_worker, environment, job, tf_runtime
from trainer.checkpoint import CheckpointStore
from trainer.config import Config
from trainer.data import beside
from trainer.data.beside import prepare_beside
from trainer.data.manifest import Manifest, is_prepared
from trainer.data.records import verify_shards
from trainer.data.sources import check_unambiguous, is_source_name
from trainer.data.storage import DatasetPath, RemotePath, parse_path
from trainer.data.task_progress import show_nothing
from trainer.distribute import hvd, multiworker, tf_strategy
from trainer.distribute.elastic import request
from trainer.distribute.engine import Engine
from trainer.distribute.job_devices import JobDevices, find_job_devices
from trainer.distribute.launchers.cluster import JOIN_TIMEOUT_SECS
from trainer.distribute.launchers.hosts import Place
from trainer.distribute.topology import Device, Topology, resolve_topology
from trainer.errors import DataError, DeviceError
from trainer.model.head_choice import HeadChoice
from trainer.model.weight_fit import WeightsReport
from trainer.plan import Plan, make_plan
from trainer.progress import TrainingProgress, task_progress
from trainer.run import claim
from trainer.run_dir import RunDir
from trainer.settings.distribute import DistributeConfig
from trainer.solve import solve
from trainer.streams import open_caches, open_features
from trainer.train import has_ended_early, make_state, train

RUNS_DIR = pathlib.Path("runs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """Everything decided, nothing started."""

    config: Config
    topology: Topology
    plan: Plan
    run: RunDir
    # The workers that this process has to start; where there are none, it trains itself.
    places: Sequence[Place] = ()
    # What these places compute on; None where there are none.
    devices: JobDevices | None = None
    # The recipe by name, where one was given or chosen, for the workers.
    recipe: str | None = None
    # Whether `run` was given or found, and not just named by the time.
    is_run_known: bool = True
    resume: bool = True

    @property
    def identity(self) -> str:
        """Of what decides the trained weights."""
        return self.plan.identity(self.config)

    def check_run_dir(self) -> None:
        """Raises RunError where the run cannot begin or go on in its directory."""
        claim.check_run_dir(
            self.run,
            self.identity,
            resume=self.resume,
            differences=lambda: claim.describe_differences(
                self.run, self.config, self.plan.run_info(self.config, self.run.path.name)
            ),
        )

    @property
    def device_arguments(self) -> list[str]:
        """What other hosts need to be told of devices, precision and XLA."""
        return job.device_arguments(self.plan) if self.devices is not None and self.devices.are_asked else []

    @property
    def first_step(self) -> int:
        """The step that the run goes on from: that of its last checkpoint, or 0."""
        return max(CheckpointStore.of_run(self.run, self.config.checkpoint).steps(), default=0)


def plan_run(config: Config, *, run_dir: pathlib.Path | None, resume: bool, note: Callable[[str], None]) -> PlannedRun:
    """Decides devices, dataset, arithmetic and run directory; a raw folder of images is prepared beside itself.

    Args:
        run_dir: the run directory; None goes on with the newest unfinished run of this very configuration below
            `RUNS_DIR`, or names a new one there by the time.
        resume: False makes an existing run in `run_dir` an error.
        note: told in a sentence what is being done that takes time.

    Raises:
        UsageError: what was asked for cannot be had; see the subclasses.
    """
    places = job.find_places(config.distribute, num_gpus_found=len(tf_runtime.list_gpus()))
    if request.is_elastic(config.distribute):
        request.check_batch(config.distribute, config.train.global_batch_size, num_places=len(places))
    devices = _find_devices(config.distribute, places, note)
    topology = _find_topology(config.distribute, places, devices, note)
    dataset_dir = find_dataset(config, note)
    own = tf_runtime.list_gpus()[: topology.num_local_replicas]
    capabilities = devices.compute_capabilities if devices else tf_runtime.list_compute_capabilities(own)
    plan = make_plan(config, dataset_dir, topology, capabilities, head_of_run=_head_of(run_dir))
    planned = PlannedRun(
        config=config,
        topology=topology,
        plan=plan,
        run=RunDir(run_dir or ""),
        places=places,
        devices=devices,
        resume=resume,
    )
    if run_dir is not None:
        if topology.is_chief:
            planned.check_run_dir()
        return planned
    found = None
    if resume and topology.is_chief:
        found = claim.find_unfinished_run(
            RUNS_DIR, planned.identity, config, num_train_steps=plan.num_train_steps, note=note
        )
    return dataclasses.replace(planned, run=found or claim.name_new_run(RUNS_DIR), is_run_known=found is not None)


def _head_of(run_dir: pathlib.Path | None) -> HeadChoice | None:
    """Return what the last layer of the run in `run_dir` started from; None where there is no run."""
    if run_dir is None or not RunDir(run_dir).exists():
        return None
    info = RunDir(run_dir).info()
    return HeadChoice(info.head, info.to_last_layer)


@contextlib.contextmanager
def open_run(planned: PlannedRun, note: Callable[[str], None]) -> Iterator[PlannedRun]:
    """Yields `planned` with a run directory that no other command trains in during the block.

    Raises:
        RunError: another command was quicker, or the directory cannot be written.
    """
    if not planned.topology.is_chief or request.is_worker():
        yield planned  # others write nothing; of an elastic job, who is chief is found out later
        return
    if not planned.is_run_known:
        planned = dataclasses.replace(planned, run=claim.claim_new_run(RUNS_DIR), is_run_known=True)
    with claim.hold_run(planned.run, planned.identity, note=note):
        planned.check_run_dir()  # it may have been taken since it was looked at
        yield planned


def start_run(planned: PlannedRun, note: Callable[[str], None]) -> None:
    """Checks the shards, writes down the plan and the environment, and trains to the end.

    Raises:
        DataError: a shard is not what the manifest says.
        StoppedOnRequest, TrainingError: see `train`.
    """
    if request.is_worker():
        elastic_worker.ElasticWorker(planned.plan, planned.config, planned.run, note=note).run()
        return
    with open_run(planned, note) as planned:
        _train_in(planned, note)


def _train_in(planned: PlannedRun, note: Callable[[str], None]) -> None:
    plan, config, run = planned.plan, planned.config, planned.run
    dataset_dir = parse_path(plan.dataset_dir)
    verify_shards(dataset_dir, Manifest.load(dataset_dir), ["train", "validation"])
    is_chief = planned.topology.is_chief
    engine = _make_engine(planned.topology, config.distribute, note)
    job.check_workers_agree(engine, {"configuration": plan.identity(config), "dataset": plan.dataset_hash})
    store = CheckpointStore.of_run(run, config.checkpoint) if is_chief else None
    reports: list[WeightsReport] = []
    state = make_state(plan, config, engine, store, on_weights=reports.append)
    first_step = int(state.global_step.numpy())
    if is_chief:
        if first_step:
            note(f"going on with {run.path} from step {first_step} of {plan.num_train_steps}")
        for warning in plan.warnings:
            note(f"warning: {warning}")
        run.create(config, plan.run_info(config, run.path.resolve().name))
        for report in reports:
            note(report.summary())
            atomic.write_text(run.weights_file, report.model_dump_json(indent=2) + "\n")
        atomic.write_text(run.plan_file, plan.model_dump_json(indent=2) + "\n")
        atomic.write_json(run.environment_file, environment.collect(sys.argv))
    if first_step == plan.num_train_steps or (
        first_step and has_ended_early(config, run, engine, is_chief=is_chief, step=first_step)
    ):
        return
    # Before the bar of the training: of two bars on one terminal neither is readable.
    show_progress = task_progress if is_chief else show_nothing
    caches = open_caches(plan, config, progress=show_progress)
    if plan.features.is_on:
        caches = open_features(
            plan, config, engine, state.model, caches, progress=show_progress, note=note if is_chief else lambda _: None
        )
    with TrainingProgress(
        epochs=plan.epochs,
        start_step=first_step,
        global_batch_size=plan.global_batch_size,
        console=None if is_chief else Console(quiet=True),
    ) as progress:
        work = solve if config.train.solver == "ridge" else train
        work(plan, config, run, engine, state, store, caches, progress)


def _find_devices(config: DistributeConfig, places: Sequence[Place], note: Callable[[str], None]) -> JobDevices | None:
    return find_job_devices(places, config, job.supervisor_options(config), note=note) if places else None


def _find_topology(
    config: DistributeConfig, places: Sequence[Place], devices: JobDevices | None, note: Callable[[str], None]
) -> Topology:
    gpus = tf_runtime.list_gpus()
    if devices is not None:
        return job.topology_of_job(config, places, devices.device)
    if config.strategy not in ("multiworker", "horovod"):
        return resolve_topology(config, num_gpus_found=len(gpus))
    if request.is_worker():
        return elastic_worker.topology_before_joining(config)
    device: Device = "gpu" if config.device == "gpu" or (config.device == "auto" and gpus) else "cpu"
    if config.strategy == "horovod":
        topology = hvd.start(
            device,
            fusion_bytes=config.fusion_bytes,
            cycle_time_ms=config.cycle_time_ms,
            start_timeout_secs=config.start_timeout_secs,
            note=note,
        )
    else:
        topology = multiworker.find_topology(device)
    asked = config.gpus or config.replicas
    if asked not in (None, topology.num_replicas):
        raise DeviceError(
            f"{asked} replicas asked for, but the workers that were started have {topology.num_replicas}; leave the "
            "number to who starts them"
        )
    return topology


def _make_engine(topology: Topology, config: DistributeConfig, note: Callable[[str], None]) -> Engine:
    if topology.strategy == "horovod":
        return hvd.make_engine(topology)
    if topology.strategy == "multiworker":
        return multiworker.make_engine(
            topology,
            fusion_bytes=config.fusion_bytes,
            start_timeout_secs=config.start_timeout_secs or JOIN_TIMEOUT_SECS,
            note=note,
        )
    return tf_strategy.make_engine(topology, fusion_bytes=config.fusion_bytes)


def find_dataset(config: Config, note: Callable[[str], None]) -> DatasetPath:
    """The prepared dataset of `data.path`; a raw folder of images is prepared beside itself.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = _locate_data(config)
    if isinstance(path, RemotePath) or is_prepared(path):
        return path
    return prepare_beside(path, note=note, progress=task_progress)


def find_preparation(config: Config) -> beside.Preparation | None:
    """What `find_dataset` would have to prepare first; None where nothing. Raises as that, and writes nothing."""
    path = _locate_data(config)
    return None if isinstance(path, RemotePath) or is_prepared(path) else beside.find_preparation(path)


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
    # What is wrong with a remote one, reading its manifest will say.
    if not is_here and not isinstance(path, RemotePath):
        raise DataError(
            f"the dataset {path} does not exist; give a prepared dataset, or a folder with one folder of images a class"
        )
    return path
