"""The training examples that each replica reads in an epoch, and their shards, from the order itself."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.config.config import Config
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.storage import parse_path
from trainer.data.input.pipeline import TrainingStream
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision, Topology
from trainer.dry_run.section import Section
from trainer.plan.plan import Plan
from trainer.training.input import TrainInputs, make_training_stream

# Positions that are computed at a time, to bound the memory.
_CHUNK = 2**18
_NUM_FIRST = 8


class ReplicaExamples(Section):
    """The examples that one replica reads in the epoch.

    Attributes:
        slice: [start, stop) of its part of every global batch.
        num_examples: Real examples that it reads.
        digest: SHA-256 of their indices in the split, int64 little-endian, in the order in which they are read.
        num_in_shard: Reads from each of `Examples.shards`.
        next_examples: The first few of the next step.
    """

    replica: int
    worker: int
    slice: tuple[int, int]
    num_examples: int
    digest: str
    num_in_shard: list[int]
    next_examples: list[int]


class Examples(Section):
    """The epoch of the next step.

    Attributes:
        num_positions: Reads in the epoch, over all replicas; fewer than `num_examples` if the run ends before.
        min_reads: Reads of the example that is read least often.
        max_reads: Reads of the example that is read most often.
    """

    epoch: int
    num_examples: int
    num_positions: int
    min_reads: int
    max_reads: int
    is_each_once: bool
    shards: list[str]
    replicas: list[ReplicaExamples]


class _Chunk(NamedTuple):
    """The examples at consecutive positions, and the replicas that read them; [k] each."""

    examples: npt.NDArray[np.int64]
    replicas: npt.NDArray[np.int64]


def find_examples(plan: Plan, config: Config, topology: Topology, *, first_step: int) -> Examples:
    """Go through the order of the whole epoch of step `first_step`; a million examples take about a second.

    Raises:
        DataError, ConfigError: See `make_training_stream`.
    """
    stream = make_training_stream(plan, config, topology, TrainInputs())
    shards = Manifest.load(parse_path(plan.data.dataset_dir)).splits["train"].shards
    counts = _Counts(plan.replicas.num_replicas, np.cumsum([shard.num_examples for shard in shards]))
    next_position = min(first_step, plan.schedule.num_train_steps - 1) * plan.replicas.global_batch_size
    epoch = next_position // plan.data.num_train_examples
    start = epoch * plan.data.num_train_examples
    stop = min(start + plan.data.num_train_examples, plan.schedule.num_positions)
    for chunk in _chunks(stream.order, stream.division, start, stop):
        counts.add(chunk)
    min_reads, max_reads = int(counts.reads.min()), int(counts.reads.max())
    return Examples(
        epoch=epoch,
        num_examples=plan.data.num_train_examples,
        num_positions=stop - start,
        min_reads=min_reads,
        max_reads=max_reads,
        is_each_once=min_reads == max_reads == 1,
        shards=[shard.file_name for shard in shards],
        replicas=[
            ReplicaExamples(
                replica=replica,
                worker=replica // topology.num_local_replicas,
                slice=stream.division.slice_of(replica),
                num_examples=int(counts.in_shards[replica].sum()),
                digest=counts.digests[replica].hexdigest(),
                num_in_shard=counts.in_shards[replica].tolist(),
                next_examples=_next_examples(stream, next_position, replica),
            )
            for replica in range(plan.replicas.num_replicas)
        ],
    )


class _Counts:
    """The reads so far: of each example, by (replica, shard), and the digests of the replicas."""

    def __init__(self, num_replicas: int, shard_ends: npt.NDArray[np.int64]) -> None:
        self._shard_ends = shard_ends
        self.reads = np.zeros(int(shard_ends[-1]), np.uint32)
        self.in_shards = np.zeros([num_replicas, len(shard_ends)], np.int64)
        self.digests = [hashlib.sha256() for _ in range(num_replicas)]

    def add(self, chunk: _Chunk) -> None:
        np.add.at(self.reads, chunk.examples, 1)
        shards = np.searchsorted(self._shard_ends, chunk.examples, side="right")
        flat = np.bincount(chunk.replicas * len(self._shard_ends) + shards, minlength=self.in_shards.size)
        self.in_shards += flat.reshape(self.in_shards.shape)
        # Stable: the order of reading stays within each replica.
        by_replica = chunk.examples[np.argsort(chunk.replicas, kind="stable")]
        ends = np.cumsum(np.bincount(chunk.replicas, minlength=len(self.digests)))
        for digest, examples in zip(self.digests, np.split(by_replica, ends[:-1]), strict=True):
            digest.update(examples.astype("<i8").tobytes())


def _next_examples(stream: TrainingStream, next_position: int, replica: int) -> list[int]:
    """Return the first few examples of a replica's slice of the batch that starts at `next_position`."""
    start, stop = (min(next_position + border, stream.num_positions) for border in stream.division.slice_of(replica))
    positions = np.arange(start, min(stop, start + _NUM_FIRST))
    examples: list[int] = stream.order.draw(tf.constant(positions, tf.int64)).examples.numpy().tolist()
    return examples


def _chunks(order: ExampleOrder, division: BatchDivision, start: int, stop: int) -> Iterator[_Chunk]:
    """Yield the positions [start, stop) of the stream in chunks."""
    slice_ends = np.array([division.slice_of(replica)[1] for replica in range(division.num_replicas)])
    for first in range(start, stop, _CHUNK):
        positions = np.arange(first, min(first + _CHUNK, stop))
        replicas = np.searchsorted(slice_ends, positions % division.global_batch_size, side="right")
        yield _Chunk(order.draw(tf.constant(positions, tf.int64)).examples.numpy(), replicas.astype(np.int64))
