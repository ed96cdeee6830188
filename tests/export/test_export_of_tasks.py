"""`trainer export` of binary and multi-label runs, with their averages, temperature and thresholds."""

import json
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from digits_classifier import HEIGHT_PX, SIGNATURE, WIDTH_PX, read_digits
from test_export_commands import invoke

from export.files.parity import ParityReport
from export.files.provenance import ExportProvenance
from export.files.signature import Signature
from export.files.statuses import STATUSES
from export.gate.golden import Golden
from export.runtime.runtimes import SavedModelRuntime
from tests import small_backbone
from trainer.config.config import load_config
from trainer.config.training import ModelTask
from trainer.data.dataset.manifest import Manifest, Split, SplitName
from trainer.data.dataset.records import Example, ShardWriter
from trainer.errors import RunError, UsageError
from trainer.metrics.summary import summarize, tune
from trainer.model.classifier import build_configured, named_arrays, saved_variables
from trainer.run.checkpoint import Checkpoint, CheckpointInfo
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.load_classifier import load_classifier
from trainer.run.run_dir import RunDir, RunInfo

pytestmark = pytest.mark.slow

SIZE_PX = 32
STEP = 40
NUM_IMAGES = 24
SETTINGS = [*small_backbone.SETTINGS, "model.weights=none"]
CLASS_NAMES: dict[str, list[str]] = {"binary": ["even", "odd"], "multi_label": ["odd", "large", "prime"]}


def labels_of(digit: int, task: str) -> tuple[int, ...]:
    if task == "binary":
        return (digit % 2,)
    # Every example has a label, as `prepare` wants it; 0 is called large.
    found = [i for i, has in enumerate((digit % 2, digit > 4 or not digit, digit in (2, 3, 5, 7))) if has]
    return tuple(found or [2])


def write_dataset(directory: pathlib.Path, task: ModelTask) -> Manifest:
    directory.mkdir()
    splits: dict[SplitName, Split] = {}
    for split in ("train", "validation"):
        encoded, digits = read_digits(split).read(np.arange(NUM_IMAGES))
        with ShardWriter(directory, f"{split}-00000-of-00001") as writer:
            for i, (content, digit) in enumerate(zip(encoded, digits, strict=True)):
                example = Example(
                    encoded=content, labels=labels_of(int(digit), task), format="png", filename=f"{i}.png",
                    height=HEIGHT_PX, width=WIDTH_PX,
                )  # fmt: skip
                writer.write(example)
        counts = [sum(k in labels_of(int(digit), task) for digit in digits) for k in range(len(CLASS_NAMES[task]))]
        splits[split] = Split(num_examples=NUM_IMAGES, class_counts=counts, shards=[writer.shard])
    manifest = Manifest(
        name=task, source=task, class_names=CLASS_NAMES[task], seed=0, splits=splits,
        task="multi_label" if task == "multi_label" else "single_label",
    )  # fmt: skip
    manifest.save(directory)
    return manifest


def write_run(directory: pathlib.Path, task: ModelTask, *, has_averages: bool) -> RunDir:
    """A run with one checkpoint of random weights, whose averages are others."""
    manifest = write_dataset(directory / "dataset", task)
    config = load_config(overrides=SETTINGS)
    run = RunDir(directory / "run")
    info = RunInfo(
        name=task.replace("_", "-"), identity="cd" * 32, dataset_dir=str(directory / "dataset"),
        dataset_hash=manifest.content_hash(), class_names=CLASS_NAMES[task], num_train_examples=NUM_IMAGES,
        image_size_px=SIZE_PX, weights="none", precision="float32", batch_norm="per_replica", task=task,
    )  # fmt: skip
    run.create(config, info)
    keras.utils.set_random_seed(3)
    model = build_configured(config.model, task=task, num_classes=len(CLASS_NAMES[task]), image_size_px=SIZE_PX)
    raw = named_arrays(saved_variables(model))
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([kernel[::-1] * 3, bias + 0.5])
    averages = named_arrays(saved_variables(model)) if has_averages else {}
    checkpoint = CheckpointInfo(
        global_step=STEP, identity=info.identity, num_replicas=1, loss_scale=1.0, num_good_steps=0, num_skipped_steps=0
    )
    CheckpointStore.of_run(run, config.checkpoint).save(Checkpoint(checkpoint, raw, {}, averages))
    return run


def write_evaluation(run: RunDir, weights: str) -> Any:
    """What `trainer evaluate` leaves of the validation split, from random logits; returns what it tuned."""
    info = run.info()
    random = np.random.default_rng(5)
    logits = random.normal(0, 2, (NUM_IMAGES, len(info.class_names))).astype(np.float32)
    is_several = info.task == "multi_label"
    labels = (random.random(logits.shape) < 0.5).astype(np.int64) if is_several else logits.argmax(axis=1)
    labels[:4] = 1 - labels[:4]
    tuning = tune(labels, logits, task=info.task, global_step=STEP, weights=weights, dataset_hash=info.dataset_hash)
    summarize(
        labels, logits, info.class_names, task=info.task, split="validation", global_step=STEP, weights=weights,
        dataset_hash=info.dataset_hash, tuning=tuning, num_resamples=0,
    ).save(run.evaluation_dir)  # fmt: skip
    return tuning


@pytest.fixture(scope="module")
def multi_label_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("multi_label"), "multi_label", has_averages=True)


@pytest.fixture(scope="module")
def binary_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("binary"), "binary", has_averages=False)


@pytest.fixture(scope="module")
def multi_label_export(multi_label_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any]:
    """The export of the averages of an evaluated run, and what was tuned."""
    tuning = write_evaluation(multi_label_run, "averages")
    directory = tmp_path_factory.mktemp("exports") / "multi_label"
    invoke(
        "export", multi_label_run.path, "--out", directory, "--formats", "saved_model,tflite-int8,onnx",
        "--outputs", "logits,features",
    )  # fmt: skip
    return directory, tuning


def test_a_multi_label_run_is_exported_with_its_tuned_thresholds_and_temperature(
    multi_label_run: RunDir, multi_label_export: tuple[pathlib.Path, Any]
) -> None:
    directory, tuning = multi_label_export
    signature = Signature.load(directory)
    assert signature.task == "multi_label" and signature.temperature == tuning.temperature != 1
    golden = Golden.load(directory)
    runtime = SavedModelRuntime(directory / "saved_model/multi-label/1")
    answer = runtime.predict_images(golden.batch.images)
    # The averages: of other weights than the raw ones, and what `auto` means as well.
    model = load_classifier(multi_label_run, weights="averages")
    logits = np.asarray(model(golden.batch.images.astype(np.float32), training=False))
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(answer["probabilities"], 1 / (1 + np.exp(-logits / tuning.temperature)), atol=1e-5)
    # To divide by a temperature must not change what is predicted: thresholds were tuned on the logits as they are.
    expected = 1 / (1 + np.exp(-logits.astype(np.float64))) >= tuning.thresholds
    np.testing.assert_array_equal(answer["predicted"], expected)
    assert golden.batch.class_ids.shape == (16, 3)
    assert "step 40 (best checkpoint, averages of its weights)" in ParityReport.load(directory).reference


def test_the_gate_judges_a_multi_label_model_by_exact_sets_of_labels(
    multi_label_export: tuple[pathlib.Path, Any],
) -> None:
    directory, _ = multi_label_export
    report = ParityReport.load(directory)
    runtime = SavedModelRuntime(directory / "saved_model/multi-label/1")
    encoded, digits = read_digits("validation").read(np.arange(NUM_IMAGES))
    predicted = runtime.predict_encoded(encoded)["predicted"]
    truth = np.array([[k in labels_of(int(digit), "multi_label") for k in range(3)] for digit in digits])
    assert [c.title for c in report.comparisons if c.failure] == []
    for comparison in report.comparisons[:2]:
        assert comparison.figures is not None
        assert comparison.figures.accuracy == (predicted == truth).all(axis=1).mean()
    assert "verified" in invoke("verify", directory)


def test_a_binary_run_is_exported_with_two_columns(binary_run: RunDir, tmp_path: pathlib.Path) -> None:
    invoke("export", binary_run.path, "--out", tmp_path / "out", "--formats", "saved_model", "--weights", "raw")
    signature = Signature.load(tmp_path / "out")
    assert (signature.task, signature.temperature, signature.thresholds) == ("binary", None, None)
    golden = Golden.load(tmp_path / "out")
    answer = SavedModelRuntime(tmp_path / "out/saved_model/binary/1").predict_images(golden.batch.images)
    one_logit = np.asarray(load_classifier(binary_run)(golden.batch.images.astype(np.float32)))[:, 1]
    np.testing.assert_allclose(answer["probabilities"][:, 1], 1 / (1 + np.exp(-one_logit)), atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1, atol=1e-6)
    assert {label.decode() for label in answer["label"]} <= {"even", "odd"}
    # The same command again, which nobody tells a version, makes the next one.
    again = ["--out", tmp_path / "out", "--formats", "saved_model", "--weights", "raw", "--overwrite"]
    assert "holds version 2 of binary" in invoke("export", binary_run.path, *again)
    assert [path.name for path in (tmp_path / "out/saved_model/binary").iterdir()] == ["2"]
    assert ExportProvenance.load(tmp_path / "out").version_counts_up


def test_what_the_run_does_not_have_is_refused(binary_run: RunDir, tmp_path: pathlib.Path) -> None:
    def refuse(message: str, *arguments: object) -> None:
        with pytest.raises(UsageError, match=message):
            invoke("export", binary_run.path, "--out", tmp_path / "out", *arguments)

    refuse("keeps no averages of its weights; use --weights raw", "--weights", "averages")
    refuse("has no temperature for these weights; make it with: trainer evaluate", "--calibrate")
    refuse("no output 'pixels' to choose; expected some of logits, features", "--outputs", "logits,pixels")
    refuse("logits are outputs of the SavedModel, which is not among", "--outputs", "logits", "--formats", "onnx")


def test_a_temperature_of_other_weights_is_not_used(multi_label_run: RunDir) -> None:
    from export.pipeline.run_tuning import tuning_to_apply

    tuning = write_evaluation(multi_label_run, "averages")
    apply = {"which": "best", "calibrate": None}
    assert tuning_to_apply(multi_label_run, weights="auto", **apply).temperature == tuning.temperature
    assert tuning_to_apply(multi_label_run, weights="raw", **apply) == (None, None)
    uncalibrated = tuning_to_apply(multi_label_run, which="best", weights="auto", calibrate=False)
    assert uncalibrated == (None, tuning.thresholds)
    with pytest.raises(RunError, match="--which best --weights raw"):
        tuning_to_apply(multi_label_run, which="best", weights="raw", calibrate=True)


def test_the_signature_file_holds_the_whole_contract_and_its_hash(multi_label_export: tuple[pathlib.Path, Any]) -> None:
    directory, _ = multi_label_export
    content = json.loads((directory / "signature.json").read_text())
    assert content["hash"] == Signature.load(directory).content_hash() == ParityReport.load(directory).signature_hash
    assert (content["channel_order"], content["interpolation"], content["antialias"]) == ("RGB", "bilinear", True)
    assert content["resize"] == "crop" and content["inputs"]["images"]["range"] == [0, 255]
    outputs = {o["name"]: o for o in content["outputs"]}
    assert list(outputs) == ["probabilities", "class_id", "label", "predicted", "logits", "features", "status"]
    assert outputs["status"]["signatures"] == ["serving_default", "images"]
    assert outputs["status"]["values"] == list(STATUSES)
    assert [name for name, o in outputs.items() if not o["saved_model_only"]] == ["probabilities"]
    assert tf.saved_model.contains_saved_model(str(directory / "saved_model/multi-label/1"))


def test_a_signature_that_was_changed_by_hand_is_refused(tmp_path: pathlib.Path) -> None:
    SIGNATURE.save(tmp_path)
    assert Signature.load(tmp_path) == SIGNATURE
    text = (tmp_path / "signature.json").read_text()
    (tmp_path / "signature.json").write_text(text.replace('"crop"', '"squash"'))
    with pytest.raises(UsageError, match="was changed after it was written"):
        Signature.load(tmp_path)
