"""Build an export request from a run directory: its model in float32, its dataset and its provenance."""

import functools

from export.convert.inference_model import num_features_of
from export.files.provenance import Provenance
from export.files.signature import FEATURES, LOGITS, Signature
from export.pipeline.make_export import ExportRequest
from export.pipeline.options import ExportOptions
from export.pipeline.run_tuning import is_of_weights, tuning_to_apply
from export.runtime.samples import open_split
from trainer.data.dataset.checks import check_splits
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.storage import DatasetPath, parse_path
from trainer.data.decode.geometry import Geometry
from trainer.errors import DataError
from trainer.metrics.evaluation import Evaluation
from trainer.run.checkpoint import AVERAGES_FILE
from trainer.run.checkpoint_store import Weights, Which, find_checkpoint, find_model_file
from trainer.run.load_classifier import load_classifier
from trainer.run.run_dir import RunDir, RunInfo


def export_request_of(run: RunDir, options: ExportOptions, *, version: int) -> ExportRequest:
    """Load a checkpoint of `run` and open its dataset.

    Raises:
        RunError: no run, no checkpoint, or a damaged one; no averages or no temperature although they are requested.
        DataError: the dataset is missing, damaged, or not the one that the run was trained on.
    """
    info, config = run.info(), run.config()
    dataset_dir = parse_path(options.data or info.dataset_dir)
    _check_dataset(dataset_dir, info)
    # Resolved once: a run that is still training may find a better checkpoint meanwhile.
    step = find_checkpoint(run, options.which)
    tuning = tuning_to_apply(run, which=options.which, weights=options.weights, calibrate=options.calibrate, step=step)
    load = functools.partial(load_classifier, run, which=step, weights=options.weights)
    model, outputs = load(), options.parsed_outputs()
    signature = Signature.of_classifier(
        model_name=info.name if options.name is None else options.name,
        class_names=info.class_names,
        geometry=Geometry(image_size_px=info.image_size_px, resize=config.data.resize),
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
        counts_up=options.version is None,
        formats=options.parsed_formats(),
        validation=open_split(dataset_dir, "validation", info.class_names),
        training=open_split(dataset_dir, "train", info.class_names),
        provenance=_describe_run(run, options.which, step, options.weights),
        max_parity_images=options.max_parity_images,
        onnx_opset=options.onnx_opset,
        build_bfloat16=functools.partial(load, dtype_policy="mixed_bfloat16"),
    )


def _check_dataset(dataset_dir: DatasetPath, info: RunInfo) -> None:
    manifest = Manifest.load(dataset_dir)
    if manifest.content_hash() != info.dataset_hash:
        raise DataError(
            f"{dataset_dir} is not the dataset that the run was trained on (content {manifest.content_hash()[:12]}, "
            f"not {info.dataset_hash[:12]}); give --data the run's dataset"
        )
    # Before the work; a damaged record, which would affect the reference and the artifacts alike, is found when read.
    check_splits(dataset_dir, manifest, ["validation"])


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
