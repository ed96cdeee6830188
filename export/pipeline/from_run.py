"""Build an export request from a run directory: its model in float32, its dataset and its provenance."""

import functools
from collections.abc import Sequence

from export.convert.inference_model import num_features_of
from export.files.formats import DEFAULT_ONNX_OPSET, Format
from export.files.provenance import Provenance
from export.files.signature import FEATURES, LOGITS, Signature
from export.pipeline.make_export import ExportRequest
from export.pipeline.run_tuning import is_of_weights, tuning_to_apply
from export.runtime.samples import open_split
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.records import verify_shards
from trainer.data.dataset.storage import DatasetPath, parse_path
from trainer.data.decode.geometry import Geometry
from trainer.errors import DataError
from trainer.metrics.evaluation import Evaluation
from trainer.run.checkpoint import AVERAGES_FILE, Weights, Which, find_checkpoint, find_model_file
from trainer.run.load_classifier import load_classifier
from trainer.run.run_dir import RunDir, RunInfo


def export_request_of(
    run: RunDir,
    *,
    which: Which,
    weights: Weights = "auto",
    calibrate: bool | None = None,
    outputs: Sequence[str] = (),
    formats: Sequence[Format],
    model_name: str,
    version: int,
    counts_up: bool = False,
    max_parity_images: int | None,
    dataset_dir: DatasetPath | None = None,
    onnx_opset: int = DEFAULT_ONNX_OPSET,
) -> ExportRequest:
    """Load a checkpoint of `run` and open its dataset.

    For `calibrate` see `tuning_to_apply`, for the other settings `ExportRequest`. `outputs` are some of
    OPTIONAL_OUTPUTS, and `dataset_dir` is where the dataset has moved to.

    Raises:
        RunError: no run, no checkpoint, or a damaged one; no averages or no temperature where they are asked for.
        DataError: the dataset is gone, damaged, or not the one that the run was trained on.
    """
    info, config = run.info(), run.config()
    dataset_dir = dataset_dir or parse_path(info.dataset_dir)
    _check_dataset(dataset_dir, info)
    geometry = Geometry(image_size_px=info.image_size_px, resize=config.data.resize)
    # Resolved once: a run that is still training may find a better checkpoint meanwhile.
    step = find_checkpoint(run, which)
    tuning = tuning_to_apply(run, which=which, weights=weights, calibrate=calibrate, step=step)
    load = functools.partial(load_classifier, run, which=step, weights=weights)
    model = load()
    signature = Signature.of_classifier(
        model_name=model_name,
        class_names=info.class_names,
        geometry=geometry,
        task=info.task,
        temperature=tuning.temperature,
        thresholds=tuning.thresholds,
        with_logits=LOGITS in outputs,
        num_features=num_features_of(model) if FEATURES in outputs else None,
        sample_bits=Manifest.load(dataset_dir).sample_bits,
    )
    return ExportRequest(
        model=model,
        signature=signature,
        version=version,
        counts_up=counts_up,
        formats=formats,
        validation=open_split(dataset_dir, "validation", info.class_names),
        training=open_split(dataset_dir, "train", info.class_names),
        provenance=_describe_run(run, which, step, weights),
        max_parity_images=max_parity_images,
        onnx_opset=onnx_opset,
        build_bfloat16=functools.partial(load, dtype_policy="mixed_bfloat16"),
    )


def _check_dataset(dataset_dir: DatasetPath, info: RunInfo) -> None:
    manifest = Manifest.load(dataset_dir)
    if manifest.content_hash() != info.dataset_hash:
        raise DataError(
            f"{dataset_dir} is not the dataset that the run was trained on (content {manifest.content_hash()[:12]}, "
            f"not {info.dataset_hash[:12]}); give --data the run's dataset"
        )
    # A damaged shard would affect the reference and the artifacts alike, and be missed.
    verify_shards(dataset_dir, manifest, ["validation"])


def _describe_run(run: RunDir, which: Which, step: int, weights: Weights) -> Provenance:
    info, config = run.info(), run.config()
    path, _ = find_model_file(run, step, weights)
    return Provenance(
        run_name=info.name,
        run_identity=info.identity,
        global_step=step,
        which=which,
        has_averages=path.name == AVERAGES_FILE,
        backbone=config.model.backbone,
        weights=info.weights,
        precision=info.precision,
        num_train_examples=info.num_train_examples,
        config_yaml=config.to_yaml(),
        evaluations=_evaluations_of(run, step, weights),
    )


def _evaluations_of(run: RunDir, step: int, weights: Weights) -> list[Evaluation]:
    """Return the evaluations of exactly these weights; others do not describe this export."""
    splits: tuple[SplitName, ...] = ("validation", "test")
    there = [split for split in splits if (run.evaluation_dir / f"{split}.json").is_file()]
    evaluations = [Evaluation.load(run.evaluation_dir, split) for split in there]
    return [e for e in evaluations if is_of_weights(run, e, step, weights)]
