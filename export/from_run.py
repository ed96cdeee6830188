"""A run directory as something to publish: its model in float32, its dataset, and where it comes from."""

from collections.abc import Sequence

from export.formats import DEFAULT_ONNX_OPSET, Format
from export.model_card import Provenance
from export.publish import Publication
from export.samples import open_split
from export.signature import Signature
from trainer.checkpoint import Which, find_checkpoint, load_classifier
from trainer.data.geometry import Geometry
from trainer.data.manifest import Manifest, SplitName
from trainer.data.records import verify_shards
from trainer.data.storage import DatasetPath, parse_path
from trainer.errors import DataError, RunError
from trainer.metrics.evaluation import Evaluation
from trainer.run_dir import RunDir, RunInfo


def publication_of_run(
    run: RunDir,
    *,
    which: Which,
    formats: Sequence[Format],
    model_name: str,
    version: int,
    max_parity_images: int | None,
    dataset_dir: DatasetPath | None = None,
    onnx_opset: int = DEFAULT_ONNX_OPSET,
) -> Publication:
    """Loads a checkpoint of `run` and opens its dataset, at `dataset_dir` where that has moved.

    Raises:
        RunError: no run, no checkpoint, or a damaged one; or its model gives several labels an image.
        DataError: the dataset is gone, damaged, or not the one that the run was trained on.
    """
    info, config = run.info(), run.config()
    if info.task == "multi_label":
        raise RunError(
            f"{run.path} holds a multi_label model, and an export answers with one label an image so far; use trainer "
            "evaluate, or train with one label an image"
        )
    dataset_dir = dataset_dir or parse_path(info.dataset_dir)
    _check_dataset(dataset_dir, info)
    geometry = Geometry(image_size_px=info.image_size_px, resize=config.data.resize)
    return Publication(
        model=load_classifier(run, which=which),
        signature=Signature.of_classifier(model_name=model_name, class_names=info.class_names, geometry=geometry),
        version=version,
        formats=formats,
        validation=open_split(dataset_dir, "validation", info.class_names),
        training=open_split(dataset_dir, "train", info.class_names),
        provenance=_describe_run(run, which),
        max_parity_images=max_parity_images,
        onnx_opset=onnx_opset,
    )


def _check_dataset(dataset_dir: DatasetPath, info: RunInfo) -> None:
    manifest = Manifest.load(dataset_dir)
    if manifest.content_hash() != info.dataset_hash:
        raise DataError(
            f"{dataset_dir} is not the dataset that the run was trained on (content {manifest.content_hash()[:12]}, "
            f"not {info.dataset_hash[:12]}); give --data the run's dataset"
        )
    # The images that decide: a damaged shard would pass its damage on to the reference too, and be missed.
    verify_shards(dataset_dir, manifest, ["validation"])


def _describe_run(run: RunDir, which: Which) -> Provenance:
    info, config = run.info(), run.config()
    step = find_checkpoint(run, which)
    return Provenance(
        run_name=info.name,
        run_identity=info.identity,
        global_step=step,
        which=which,
        backbone=config.model.backbone,
        weights=info.weights,
        precision=info.precision,
        num_train_examples=info.num_train_examples,
        config_yaml=config.to_yaml(),
        evaluations=_evaluations_of_step(run, step),
    )


def _evaluations_of_step(run: RunDir, step: int) -> list[Evaluation]:
    """What `trainer evaluate` wrote of this very step; an evaluation of another one says nothing of this export."""
    splits: tuple[SplitName, ...] = ("validation", "test")
    there = [split for split in splits if (run.evaluation_dir / f"{split}.json").is_file()]
    evaluations = [Evaluation.load(run.evaluation_dir, split) for split in there]
    return [e for e in evaluations if e.global_step == step]
