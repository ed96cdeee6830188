"""Find the replicas of this process and make the engine that connects them."""

import os
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.config.distribute import DistributeConfig
from trainer.distribute import horovod, mirrored, multiworker
from trainer.distribute.elastic import options
from trainer.distribute.engine import Engine
from trainer.distribute.job_devices import JobDevices, find_job_devices
from trainer.distribute.launchers.cluster import JOIN_TIMEOUT_SECS
from trainer.distribute.launchers.environments import LOCAL_INDEX_VARIABLE
from trainer.distribute.launchers.hosts import WorkerSlot
from trainer.distribute.topology import Device, Topology, resolve_topology
from trainer.errors import DeviceError
from trainer.launch import job
from trainer.system import tf_runtime


def find_topology(
    config: DistributeConfig, slots: Sequence[WorkerSlot], devices: JobDevices | None, note: Callable[[str], None]
) -> Topology:
    """Return the topology of the job; connect to the other workers if the strategy is Horovod.

    Raises:
        DeviceError: fewer GPUs or other workers are there than were asked for.
    """
    gpus = tf_runtime.list_gpus()
    if devices is not None:
        return job.topology_of_job(config, slots, devices.device)
    if config.strategy not in ("multiworker", "horovod"):
        return resolve_topology(config, num_gpus_found=len(gpus))
    if options.is_worker():
        return _topology_before_joining(config)
    device: Device = "gpu" if config.device == "gpu" or (config.device == "auto" and gpus) else "cpu"
    if config.strategy == "horovod":
        topology = horovod.start(
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


def claim_replicas(topology: Topology, config: DistributeConfig, note: Callable[[str], None]) -> None:
    """Split the CPU into the replicas of `topology`, or join its cluster: neither is possible once TensorFlow has run.

    `make_engine` does it otherwise.
    """
    if topology.strategy == "multiworker":
        multiworker.join(config.start_timeout_secs or JOIN_TIMEOUT_SECS, note)
    elif topology.strategy == "mirrored" and topology.device == "cpu":
        tf_runtime.split_cpu(topology.num_local_replicas)


def make_engine(topology: Topology, config: DistributeConfig, note: Callable[[str], None]) -> Engine:
    """Return the engine of the strategy; call this before anything has run a TensorFlow operation."""
    if topology.strategy == "horovod":
        return horovod.HorovodEngine(topology)
    if topology.strategy == "multiworker":
        return multiworker.make_engine(
            topology,
            fusion_bytes=config.fusion_bytes,
            start_timeout_secs=config.start_timeout_secs or JOIN_TIMEOUT_SECS,
            note=note,
        )
    return mirrored.make_engine(topology, fusion_bytes=config.fusion_bytes)


def find_devices(
    config: DistributeConfig, slots: Sequence[WorkerSlot], note: Callable[[str], None]
) -> JobDevices | None:
    return find_job_devices(slots, config, job.supervisor_options(config), note=note) if slots else None


def _topology_before_joining(config: DistributeConfig) -> Topology:
    """Return the topology with the largest number of workers; on GPUs, take the one of the slot, for all generations.

    Raises:
        DeviceError: the host has fewer GPUs than slots.
    """
    gpus = tf_runtime.list_gpus()
    is_gpu = config.device == "gpu" or (config.device == "auto" and bool(gpus))
    if is_gpu:
        index = int(os.environ[LOCAL_INDEX_VARIABLE])
        if index >= len(gpus):
            raise DeviceError(
                f"this worker is process {index} of its host, which has {len(gpus)} GPUs; give the host no more slots "
                "than it has GPUs"
            )
        horovod.check_gpu_reductions()
        tf.config.set_visible_devices(gpus[index], "GPU")
    return Topology(
        strategy="horovod",
        device="gpu" if is_gpu else "cpu",
        num_local_replicas=1,
        num_workers=config.max_replicas or config.min_replicas or 1,
    )
