"""The parameters of a model, its memory on each replica, and the traffic between replicas in a step."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.config.config import Config
from trainer.dry_run.arithmetic import BatchArithmetic
from trainer.dry_run.section import Section
from trainer.model.classifier import build_configured
from trainer.model.layers.batch_norm import SynchronizedBatchNormalization, changing_statistics
from trainer.plan.plan import Plan
from trainer.plan.replicas_plan import ReplicasPlan
from trainer.step.optimizer import Optimizer
from trainer.system.private_api.keras_graph import all_layers

_FLOAT32_BYTES, _FLOAT16_BYTES = 4, 2
# Weighted loss, number right, weight; see `steps`.
_NUM_SUMS = 3


class Parameters(Section):
    """The parameters of the model; `num_statistics` counts moving means and variances that training changes."""

    num_parameters: int
    num_trainable: int
    num_statistics: int


class Memory(Section):
    """The bytes in use on one replica during a step.

    `activations_bytes` is an estimate: the outputs of all layers in the backward pass, for one chunk of the batch,
    without fusion, padding, the workspaces of the libraries and new values before their assignment.
    """

    parameters_bytes: int
    gradients_bytes: int
    optimizer_slots_bytes: int
    averages_bytes: int
    activations_bytes: int
    input_batch_bytes: int
    total_bytes: int


class Traffic(Section):
    """The traffic of the all-reduces of a step.

    Attributes:
        gradients_bytes: Gradients of each replica.
        statistics_bytes: Batch statistics of each replica.
        sums_bytes: Sums for the metrics of each replica.
        ring_factor: 2 (n - 1) / n, the share of these bytes that each replica of a ring of n sends, and receives
            (Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69).
        replica_bytes: Bytes that each replica sends, and receives.
        worker_network_bytes: Bytes that each worker sends to others, and receives; 0 for a single worker.
    """

    gradients_bytes: int
    statistics_bytes: int
    sums_bytes: int
    ring_factor: float
    replica_bytes: int
    worker_network_bytes: int


class Footprint(Section):
    parameters: Parameters
    memory: Memory
    traffic: Traffic


def measure_footprint(plan: Plan, config: Config, batch: BatchArithmetic) -> Footprint:
    """Build the model, which takes seconds, and add up its sizes; no graph is traced and no weights are loaded."""
    # Parameters do not depend on the size of the images, activations do.
    image_size_px = max(stage.image_size_px for stage in plan.schedule.stages)
    with tf.device("CPU:0"):
        model = build_configured(
            config.model,
            task=plan.model.task,
            num_classes=len(plan.data.class_names),
            image_size_px=image_size_px,
            trainable=plan.schedule.stages[-1].trainable,
            batch_norm=plan.model.batch_norm,
            dtype_policy=plan.replicas.precision,
            to_last_layer=plan.model.to_last_layer,
        )
    parameters = Parameters(
        num_parameters=_count(model.variables),
        num_trainable=_count(model.trainable_variables),
        num_statistics=_count(changing_statistics(model)),
    )
    return Footprint(
        parameters=parameters,
        memory=_measure_memory(config, batch, model, parameters, image_size_px),
        traffic=_measure_traffic(plan.replicas, config, model, parameters),
    )


def _measure_memory(
    config: Config, batch: BatchArithmetic, model: Any, parameters: Parameters, image_size_px: int
) -> Memory:
    num_slots = Optimizer.of_variables(config.optimizer, model.trainable_variables).num_slots
    num_averaged = parameters.num_trainable + parameters.num_statistics if config.train.ema_decay else 0
    # With several chunks, the sum so far and the gradients of the next chunk are in memory together.
    num_gradients = parameters.num_trainable * (1 if batch.accumulate_steps == 1 else 2)
    parts = {
        "parameters_bytes": sum(_count([v]) * np.dtype(v.dtype).itemsize for v in model.variables),
        "gradients_bytes": num_gradients * _FLOAT32_BYTES,
        "optimizer_slots_bytes": num_slots * parameters.num_trainable * _FLOAT32_BYTES,
        "averages_bytes": num_averaged * _FLOAT32_BYTES,
        "activations_bytes": batch.chunk_size * _activation_bytes(model),
        # Pixels stay uint8 up to the device.
        "input_batch_bytes": batch.per_replica_batch_size * image_size_px**2 * 3,
    }
    return Memory(**parts, total_bytes=sum(parts.values()))


def _measure_traffic(replicas: ReplicasPlan, config: Config, model: Any, parameters: Parameters) -> Traffic:
    n = replicas.num_replicas
    gradient_bytes = _FLOAT16_BYTES if config.distribute.compression == "float16" else _FLOAT32_BYTES
    # Synchronised: sum, sum of squares and count forward, their gradients backward, for each chunk.
    channels = [
        math.prod(layer.moving_mean.shape)
        for layer in all_layers(model)
        if isinstance(layer, SynchronizedBatchNormalization) and layer.trainable
    ]
    num_synchronized = 2 * sum(2 * c + 1 for c in channels) * config.train.num_parts
    parts = {
        "gradients_bytes": parameters.num_trainable * gradient_bytes,
        "statistics_bytes": (parameters.num_statistics + num_synchronized) * _FLOAT32_BYTES,
        "sums_bytes": _NUM_SUMS * _FLOAT32_BYTES,
    }
    ring_factor = 2 * (n - 1) / n
    replica_bytes = round(ring_factor * sum(parts.values()))
    return Traffic(
        **parts,
        ring_factor=ring_factor,
        replica_bytes=replica_bytes,
        # A ring passes into each worker once and out of it once, however many replicas it has.
        worker_network_bytes=replica_bytes if replicas.num_workers > 1 else 0,
    )


def _activation_bytes(model: Any) -> int:
    """Return the size, for one example, of the outputs of all layers from the first trained one on."""
    layers = [layer for layer in all_layers(model) if not isinstance(layer, keras.Model | keras.layers.InputLayer)]
    first = next((i for i, layer in enumerate(layers) if layer.trainable_weights), len(layers))
    kept = sum(_output_bytes(layer) for layer in layers[first:])
    # The frozen layers before it keep nothing, but compute one output from another.
    passing = max((_output_bytes(a) + _output_bytes(b) for a, b in itertools.pairwise(layers[:first])), default=0)
    return max(kept, passing)


def _output_bytes(layer: Any) -> int:
    outputs: Iterable[Any] = keras.tree.flatten(layer.output)
    return sum(math.prod(output.shape[1:]) * tf.as_dtype(output.dtype).size for output in outputs)


def _count(variables: Iterable[Any]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)
