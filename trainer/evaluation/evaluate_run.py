"""Evaluate a run exactly: every example of a split once, on any number of replicas."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Final

from trainer.console.progress import task_progress
from trainer.data.dataset.checks import check_splits
from trainer.data.dataset.example_columns import read_columns
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.dataset.storage import DatasetPath, parse_path
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pipeline import EvaluationStream
from trainer.distribute.engine import Engine
from trainer.errors import DataError, RunError
from trainer.evaluation.evaluator import Evaluator, Labels, Logits
from trainer.metrics.evaluation import Evaluation, Tuning, save_arrays
from trainer.metrics.scores import needed_bytes
from trainer.metrics.summary import summarize, tune
from trainer.run.checkpoint_store import Weights, Which, find_checkpoint
from trainer.run.load_classifier import load_classifier
from trainer.run.run_dir import RunDir
from trainer.system.memory import check_fits

# The split that temperature and thresholds are fitted on.
TUNING_SPLIT: Final = "validation"


def evaluate_run(
    run: RunDir,
    split: SplitName,
    engine: Engine,
    *,
    which: Which = "best",
    weights: Weights = "auto",
    dataset_dir: DatasetPath | None = None,
    slice_columns: Sequence[str] = (),
    slice_file: pathlib.Path | None = None,
    per_replica_batch_size: int = 32,
    jit_compile: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a checkpoint of `run` in float32, and write `evaluation/<split>.json` and its arrays.

    Temperature and thresholds are those of the validation split at the same step, which is evaluated first, with a
    note, if it has not been.

    Args:
        run: The run.
        split: The split to evaluate.
        engine: The engine of the replicas.
        which: The checkpoint.
        weights: Averages or raw weights.
        dataset_dir: The location of the dataset now; None if it has not moved since the training.
        slice_columns: Columns of the records to slice by; see `read_columns`.
        slice_file: CSV file with columns to slice by; see `read_columns`.
        per_replica_batch_size: Examples of a replica in a step.
        jit_compile: Whether XLA compiles the model.
        note: Called with messages for people.

    Raises:
        RunError: There is no run or no checkpoint.
        DataError: The dataset is missing, damaged, or not the one that the run was trained on.
    """
    info = run.info()
    dataset_dir = dataset_dir or parse_path(info.dataset_dir)
    manifest = Manifest.load(dataset_dir)
    if manifest.class_names != info.class_names:
        raise DataError(
            f"{dataset_dir} has other classes than the run {run.path} was trained on; give --data the run's dataset"
        )
    dataset_hash = manifest.content_hash()
    step = find_checkpoint(run, which)
    tuning = None if split == TUNING_SPLIT else find_tuning(run, step, weights, dataset_hash)
    splits = [split] if tuning else _splits_to_evaluate(split, manifest, dataset_dir, note)
    for part in splits:
        _check_memory(manifest, part)
    check_splits(dataset_dir, manifest, splits)
    columns: dict[str, list[str]] = {}
    if slice_columns or slice_file:
        # Before the work: a wrong column must not cost an evaluation.
        with SplitReader(dataset_dir, manifest, split) as reader:
            columns = read_columns(reader, slice_columns, slice_file)
    with engine.scope():
        model = load_classifier(run, which=step, weights=weights)
    geometry = Geometry(image_size_px=info.image_size_px, resize=run.config().data.resize)
    evaluator: Evaluator | None = None
    for part in splits:
        with SplitReader(dataset_dir, manifest, part) as reader:
            stream = EvaluationStream(
                reader=reader,
                geometry=geometry,
                per_replica_batch_size=per_replica_batch_size,
                topology=engine.topology,
            )
            evaluator = evaluator.on(stream) if evaluator else Evaluator(engine, model, stream, jit_compile=jit_compile)
            labels, logits = _run_with_progress(evaluator, part)
        if part == TUNING_SPLIT:
            tuning = tune(labels, logits, task=info.task, global_step=step, weights=weights, dataset_hash=dataset_hash)
        evaluation = summarize(
            labels, logits, info.class_names, task=info.task, split=part, global_step=step, weights=weights,
            dataset_hash=dataset_hash, tuning=tuning, columns=columns if part == split else None,
        )  # fmt: skip
        save_arrays(run.evaluation_dir, split=part, global_step=step, labels=labels, logits=logits)
        evaluation.save(run.evaluation_dir)
    return evaluation


def _check_memory(manifest: Manifest, split: SplitName) -> None:
    num_examples = manifest.splits[split].num_examples if split in manifest.splits else 0
    check_fits(
        needed_bytes(num_examples, manifest.num_classes, has_several_labels=manifest.task == "multi_label"),
        f"evaluating the {num_examples:,} {split} images on {manifest.num_classes:,} classes",
        "evaluate the run on a machine with more",
    )


def _splits_to_evaluate(
    split: SplitName, manifest: Manifest, dataset_dir: DatasetPath, note: Callable[[str], None]
) -> list[SplitName]:
    if split == TUNING_SPLIT:
        return [split]
    if TUNING_SPLIT in manifest.splits and manifest.splits[TUNING_SPLIT].num_examples:
        note(f"evaluating the {TUNING_SPLIT} split first: temperature and thresholds are tuned on it")
        return [TUNING_SPLIT, split]
    note(f"{dataset_dir} has no {TUNING_SPLIT} split: no temperature is fitted, and thresholds are one half")
    return [split]


def _run_with_progress(evaluator: Evaluator, split: SplitName) -> tuple[Labels, Logits]:
    with task_progress(f"evaluate {split}", evaluator.num_steps) as progress:
        return evaluator.run(progress.advance)


def find_tuning(run: RunDir, step: int, weights: Weights, dataset_hash: str) -> Tuning | None:
    """Return what was tuned on the validation split with the same weights; None if it was not."""
    try:
        tuning = Evaluation.load(run.evaluation_dir, TUNING_SPLIT).tuning
    except RunError:
        return None
    asked = (step, weights, dataset_hash)
    return tuning if tuning and (tuning.global_step, tuning.weights, tuning.dataset_hash) == asked else None
