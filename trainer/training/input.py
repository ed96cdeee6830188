"""The input of a run by its plan: cached images or features, the training stream and the validation stream."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from trainer.config.config import Config
from trainer.console.task_progress import ShowProgress, show_nothing
from trainer.data.augmentation.presets import PRESETS, resolve_augmentation
from trainer.data.dataset.manifest import SplitName
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.dataset.storage import parse_path
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import EvaluationStream, Pixels, Resources, TrainingStream, open_split
from trainer.data.input.pixel_cache import open_pixels
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.engine import Engine
from trainer.distribute.topology import Topology
from trainer.features.extract import Extraction
from trainer.features.trunk import cut_classifier
from trainer.plan.data_plan import DataPlan
from trainer.plan.model_plan import ModelPlan
from trainer.plan.plan import Plan
from trainer.system.memory import find_ram_budget_bytes

# However large the cache is, tf.data gets this much for its buffers.
_MIN_BUFFER_BYTES = 2**28


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainInputs:
    """The cached inputs of a run by split: decoded images, features of frozen layers, or None.

    Attributes:
        head_model: the part of the model that takes the features; None if the inputs are images.
    """

    train: Pixels | None = None
    validation: Pixels | None = None
    head_model: Any | None = None


def geometry_of(model: ModelPlan, config: Config) -> Geometry:
    """Return the image size of the run, and how images are brought to it."""
    return Geometry(image_size_px=model.image_size_px, resize=config.data.resize)


def open_caches(plan: Plan, config: Config, progress: ShowProgress = show_nothing) -> TrainInputs:
    """Open the image caches of the plan; fill those that do not exist, which takes as long as decoding an epoch.

    Raises:
        DataError: a split cannot be read, or a cache not be written.
    """

    def open_split_cache(split: SplitName) -> Pixels | None:
        return open_pixels(
            parse_path(plan.data.dataset_dir),
            split,
            geometry_of(plan.model, config),
            location=plan.data.train_cache if split == "train" else plan.data.validation_cache,
            cache_dir=pathlib.Path(plan.data.cache_dir) if plan.data.cache_dir else None,
            num_threads=config.data.num_parallel_reads,
            progress=progress,
        )

    return TrainInputs(train=open_split_cache("train"), validation=open_split_cache("validation"))


def open_features(
    plan: Plan,
    config: Config,
    engine: Engine,
    model: Any,
    images: TrainInputs,
    *,
    progress: ShowProgress = show_nothing,
    note: Callable[[str], None] = lambda _: None,
) -> TrainInputs:
    """Compute the features of the plan, or open those that exist, with the part of `model` that takes them.

    They are computed from `images`, where the plan caches decoded images.

    Raises: see `Extraction.features`.
    """
    cut = cut_classifier(model)
    assert cut is not None and cut.layer == plan.features.layer, "the plan was made for this model"
    features = Extraction(
        plan=plan.features,
        config=config,
        dataset_dir=plan.data.dataset_dir,
        geometry=geometry_of(plan.model, config),
        precision=plan.replicas.precision,
        jit_compile=plan.replicas.jit_compile,
        engine=engine,
        cut=cut,
        pixels={"train": images.train, "validation": images.validation},
        progress=progress,
        note=note,
    ).features()
    return TrainInputs(train=features["train"], validation=features["validation"], head_model=cut.tail)


def make_training_stream(plan: Plan, config: Config, topology: Topology, inputs: TrainInputs) -> TrainingStream:
    """Return the stream of training examples; raise DataError or ConfigError if they cannot be read or sampled."""
    reader = open_split(parse_path(plan.data.dataset_dir), "train")
    return TrainingStream(
        reader=reader,
        order=_make_order(plan.data, config, reader),
        geometry=geometry_of(plan.model, config),
        # The views that features are kept of are changed already.
        augmentation=resolve_augmentation(config.augment) if inputs.head_model is None else PRESETS["none"],
        division=plan.replicas.division,
        topology=topology,
        num_positions=plan.schedule.num_positions,
        weighs_loss=config.data.sampling != "weighted",
        scaled_decoding=config.data.scaled_decoding,
        pixels=inputs.train,
        num_views=1 if inputs.head_model is None else plan.features.num_views,
        resources=_find_resources(plan.data, config),
    )


def make_validation_stream(plan: Plan, config: Config, topology: Topology, inputs: TrainInputs) -> EvaluationStream:
    """Return the stream of validation examples; raise DataError if the split cannot be read."""
    return EvaluationStream(
        reader=open_split(parse_path(plan.data.dataset_dir), "validation"),
        geometry=geometry_of(plan.model, config),
        per_replica_batch_size=plan.replicas.per_replica_batch_size,
        topology=topology,
        pixels=inputs.validation,
        resources=_find_resources(plan.data, config),
    )


def _make_order(data: DataPlan, config: Config, reader: SplitReader) -> ExampleOrder:
    sampling = config.data.sampling
    return ExampleOrder.of(
        num_examples=reader.num_examples,
        seed=config.train.seed,
        sampling=sampling,
        run_length=config.data.run_length,
        labels=reader.labels() if sampling == "class_balanced" else None,
        weights=reader.weights() if sampling == "weighted" else None,
        class_names=data.class_names,
    )


def _find_resources(data: DataPlan, config: Config) -> Resources:
    # Free memory is measured after the caches are filled; of memory that was given, their share is subtracted.
    held = data.cache_num_bytes if "memory" in (data.train_cache, data.validation_cache) else 0
    given = config.data.ram_budget_gib
    budget = find_ram_budget_bytes(given) - (held if given is not None else 0)
    return Resources(num_threads=config.data.num_parallel_reads, ram_budget_bytes=max(budget, _MIN_BUFFER_BYTES))
