"""Load the features of a split from the store, or compute them on all workers and store them.

Each worker computes its share of the rows, batch by batch; the rows of all workers are gathered after each batch, and
the chief writes them. A worker that does not see the chief's store gets a copy in its own.
"""

import dataclasses
import pathlib
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from trainer.config.config import Config
from trainer.console.task_progress import ShowProgress
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.storage import parse_path
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import EvaluationStream, Pixels, Resources, open_split
from trainer.data.input.pixel_cache import decisive_for_pixels
from trainer.data.input.read_errors import as_data_errors
from trainer.distribute.engine import Engine
from trainer.distribute.launchers import heartbeat
from trainer.errors import ModelError
from trainer.features.decision import FeaturePlan
from trainer.features.runtimes import (
    MAX_RELATIVE_DIFFERENCE,
    Compute,
    Runtime,
    make_compute,
    relative_difference,
    version_of,
)
from trainer.features.store import Features, FeatureStore
from trainer.features.trunk import Cut, digest_of
from trainer.features.views import ViewStream
from trainer.step.evaluation_step import EvaluationStep
from trainer.system.disk import BYTES_PER_GIB

_BATCH_SIZE = 32
_NUM_SHARED_BYTES = 2**24
Stream = EvaluationStream | ViewStream
# From a batch of this worker to the rows of all workers' batches, in their order.
_ComputeRows = Callable[[Any], Features]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """The extraction of the features of a run.

    Attributes:
        precision: Of TensorFlow, if it is the runtime.
        jit_compile: Of TensorFlow, if it is the runtime.
        pixels: Decoded images by split, for splits with a cache.
    """

    plan: FeaturePlan
    config: Config
    dataset_dir: str
    geometry: Geometry
    precision: str
    jit_compile: bool
    engine: Engine
    cut: Cut
    pixels: Mapping[SplitName, Pixels | None]
    progress: ShowProgress
    note: Callable[[str], None]

    @property
    def store(self) -> FeatureStore:
        assert self.plan.dir is not None, "the plan keeps features"
        budget = int(self.config.features.budget_gib * BYTES_PER_GIB)
        return FeatureStore(pathlib.Path(self.plan.dir), budget_bytes=budget)

    def features(self) -> dict[SplitName, Features]:
        """Return the features of the training split [n * num_views, ...] and of the validation split [n, ...].

        View v of training example i is in row i * num_views + v.

        Raises:
            ModelError: The runtime that was asked for gives other numbers than Keras, or does not support the network.
            DataError: A split cannot be read, a record is damaged, or the store cannot be written.
        """
        digest = digest_of(self.cut.trunk)
        assert self.plan.runtime is not None, "the plan keeps features"
        candidates = [self.plan.runtime, *self.plan.fallbacks]
        splits: tuple[SplitName, ...] = ("train", "validation")
        for runtime in candidates:
            found = {split: self.store.open(split, self._key(split, runtime, digest)) for split in splits}
            if not self.engine.any(any(features is None for features in found.values())):
                return {split: features for split, features in found.items() if features is not None}
        with as_data_errors():
            runtime, compute = self._choose(candidates)
            return {split: self._open_or_compute(split, self._key(split, runtime, digest), compute) for split in splits}

    def _key(self, split: SplitName, runtime: Runtime, digest: str) -> dict[str, Any]:
        manifest = Manifest.load(parse_path(self.dataset_dir))
        key = {
            **decisive_for_pixels(manifest, split, self.geometry),
            "trunk": digest,
            "layer": self.cut.layer,
            "precision": self.precision if runtime == "tensorflow" else "float32",
            "jit_compile": self.jit_compile and runtime == "tensorflow",
            "runtime": version_of(runtime),
            "device": self.engine.topology.device if runtime == "tensorflow" else "cpu",
            "processor": platform.machine(),
        }
        if split == "train" and self.plan.num_views > 1:
            augmentation = dataclasses.asdict(resolve_augmentation(self.config.augment))
            key |= {
                "augmentation": augmentation,
                "num_views": self.plan.num_views,
                "seed": self.config.train.seed,
                "scaled_decoding": self.config.data.scaled_decoding,
            }
        return key

    def _choose(self, candidates: list[Runtime]) -> tuple[Runtime, Compute | None]:
        """Return the first runtime that agrees with Keras on a few images, on every worker, and its function.

        The function is None for TensorFlow.
        """
        images = next(iter(self._stream("validation", num_replicas=1, batch_size=8).dataset())).images.numpy()
        for runtime in candidates:
            if runtime == "tensorflow":
                return runtime, None
            failure, compute = "", None
            try:
                compute = make_compute(runtime, self.cut.trunk)
                difference = relative_difference(compute, self.cut.trunk, images)
                if not difference <= MAX_RELATIVE_DIFFERENCE:
                    failure = (
                        f"{runtime} gives features that differ from Keras's by {difference:.1e} of the largest, over "
                        f"{MAX_RELATIVE_DIFFERENCE:g}; use --set features.runtime=tensorflow"
                    )
            except ModelError as e:
                failure = str(e)
            if not self.engine.any(bool(failure)):
                return runtime, compute
            if runtime == candidates[-1]:
                raise ModelError(
                    failure or f"{runtime} failed on another worker; use --set features.runtime=tensorflow"
                )
            self.note(f"warning: {failure or f'{runtime} failed on another worker'}; the next runtime is used")
        raise AssertionError("the last candidate returns or raises")

    def _open_or_compute(self, split: SplitName, key: dict[str, Any], compute: Compute | None) -> Features:
        store, engine = self.store, self.engine
        found = store.open(split, key)
        if engine.any(found is None):
            if engine.any(found is None and engine.topology.is_chief):
                self._compute(split, key, compute)
            # The chief has written the features before any worker opens them.
            engine.barrier()
            found = found if found is not None else store.open(split, key)
            if engine.any(found is None):
                found = self._share(split, key, found)
        assert found is not None, "what was just written is there"
        return found

    def _compute(self, split: SplitName, key: dict[str, Any], compute: Compute | None) -> None:
        engine = self.engine
        is_local = compute is not None
        stream = self._stream(split, num_replicas=1 if is_local else None, batch_size=_BATCH_SIZE)
        rows_of = self._with(compute) if compute is not None else self._with_engine()
        batches = iter(stream.dataset()) if is_local else iter(engine.distribute(stream.dataset()))
        num_rows = stream.num_rows if isinstance(stream, ViewStream) else stream.reader.num_examples
        rows = self._rows(batches, rows_of, num_rows, f"features of {split}")
        if not engine.topology.is_chief:
            for _ in rows:
                pass
            return
        with self.store.write(split, key, (num_rows, *self.cut.feature_shape)) as writer:
            for some in rows:
                writer.write(some)

    def _rows(self, batches: Iterator[Any], rows_of: _ComputeRows, num_rows: int, what: str) -> Iterator[Features]:
        num_done, pulse = 0, heartbeat.of_this_worker()
        with self.progress(what, num_rows) as shown:
            for batch in batches:
                some = rows_of(batch)[: num_rows - num_done]
                num_done += len(some)
                shown.advance(len(some))
                if pulse is not None:
                    pulse.beat()
                yield some
        assert num_done == num_rows, "every row was computed"

    def _stream(self, split: SplitName, *, num_replicas: int | None, batch_size: int) -> Stream:
        """Return the input, for `num_replicas` replicas of this worker; None for those of the engine."""
        topology = self.engine.topology
        if num_replicas is not None:
            topology = dataclasses.replace(topology, num_local_replicas=num_replicas)
        shared: dict[str, Any] = {
            "reader": open_split(parse_path(self.dataset_dir), split),
            "geometry": self.geometry,
            "per_replica_batch_size": batch_size,
            "topology": topology,
            "resources": Resources(num_threads=self.config.data.num_parallel_reads),
        }
        if split == "train" and self.plan.num_views > 1:
            return ViewStream(
                **shared,
                num_views=self.plan.num_views,
                seed=self.config.train.seed,
                augmentation=resolve_augmentation(self.config.augment),
                scaled_decoding=self.config.data.scaled_decoding,
            )
        return EvaluationStream(**shared, pixels=self.pixels.get(split))

    def _with(self, compute: Compute) -> _ComputeRows:
        return lambda batch: np.concatenate(self.engine.gather_from_workers(compute(batch.images.numpy())))

    def _with_engine(self) -> _ComputeRows:
        step = EvaluationStep(self.engine, self.cut.trunk, jit_compile=self.jit_compile)

        def rows_of(batch: Any) -> Features:
            gathered = self.engine.gather(step(batch))
            return gathered.reshape(-1, *gathered.shape[2:])

        return rows_of

    def _share(self, split: SplitName, key: dict[str, Any], found: Features | None) -> Features:
        """Send the chief's features to the workers that do not see its store."""
        engine, store = self.engine, self.store
        num_rows = int(engine.gather_from_workers(np.array([0 if found is None else len(found)], np.int64))[0][0])
        shape = (num_rows, *self.cut.feature_shape)
        size = max(1, _NUM_SHARED_BYTES // max(1, int(np.prod(shape[1:])) * 4))
        blocks = self._received(found, shape, size)
        if found is not None:
            for _ in blocks:
                pass
            return found
        # Workers on one machine write at the same time, and the last copy stays. A lock would deadlock, since every
        # worker takes part in each collective.
        with store.write(split, key, shape, is_alone=False) as writer:
            for block in blocks:
                writer.write(block)
        opened = store.open(split, key)
        assert opened is not None, "what was just written is there"
        return opened

    def _received(self, found: Features | None, shape: tuple[int, ...], size: int) -> Iterator[Features]:
        for start in range(0, shape[0], size):
            stop = min(start + size, shape[0])
            given = found[start:stop] if found is not None else np.zeros((stop - start, *shape[1:]), np.float32)
            yield self.engine.gather_from_workers(np.ascontiguousarray(given))[0]
