"""A run directory as `trainer launch` and `trainer evaluate` leave it, made in a second: softmax regression on
scikit-learn's digits, trained for real, so that every figure of the report is one that was measured."""

import dataclasses
import io
import pathlib
import time

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits

from trainer.config.config import load_config
from trainer.data.dataset.manifest import Manifest, Split
from trainer.data.dataset.records import Example, ShardWriter
from trainer.metrics.evaluation import Evaluation, save_arrays
from trainer.metrics.summary import summarize
from trainer.run.metric_writers import MetricsLog
from trainer.run.run_dir import RunDir, RunInfo
from trainer.system import atomic, environment

CLASS_NAMES = [str(digit) for digit in range(10)]
BATCH_SIZE = 64
NUM_STEPS = 400
SPLIT_BOUNDS = {"train": (0, 1149), "validation": (1149, 1437), "test": (1437, 1797)}


@dataclasses.dataclass(frozen=True)
class DigitsRun:
    run: RunDir
    dataset_dir: pathlib.Path
    evaluation: Evaluation
    labels: np.ndarray
    logits: np.ndarray


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> DigitsRun:
    """Do not change its files: every test of the session reads them."""
    return build_digits_run(tmp_path_factory.mktemp("digits"))


def build_digits_run(directory: pathlib.Path, class_names: list[str] = CLASS_NAMES) -> DigitsRun:
    pixels, labels = load_digits(return_X_y=True)
    dataset_dir = directory / "digits"
    manifest = write_dataset(dataset_dir, pixels, labels, class_names)
    run = RunDir(directory / "runs" / "digits-softmax")
    config = load_config(overrides=["data.path=digits", "train.epochs=22.28", "optimizer.learning_rate=0.05"])
    run.create(config, run_info(manifest, dataset_dir))
    splits = {name: (pixels[a:b] / 16, labels[a:b].astype(np.int64)) for name, (a, b) in SPLIT_BOUNDS.items()}
    logits = train_softmax_regression(splits, run)["test"]
    atomic.write_json(
        run.plan_file,
        {
            "schema_version": 1,
            "strategy": "mirrored",
            "device": "cpu",
            "num_replicas": 2,
            "precision": "float32",
            "jit_compile": False,
            "global_batch_size": BATCH_SIZE,
            "num_train_steps": NUM_STEPS,
            "steps_per_epoch": 1149 / BATCH_SIZE,
            "num_train_examples": 1149,
            "num_positions": NUM_STEPS * BATCH_SIZE,
            "warnings": [],
        },
    )
    atomic.write_json(run.environment_file, environment.collect(["trainer", "launch", "--data", "digits"]))
    evaluation = write_evaluation(run, splits["test"][1], logits, class_names)
    return DigitsRun(run, dataset_dir, evaluation, splits["test"][1], logits)


def write_dataset(dataset_dir: pathlib.Path, pixels, labels, class_names: list[str]) -> Manifest:
    splits = {}
    with atomic.new_directory(dataset_dir) as directory:
        for name, (start, end) in SPLIT_BOUNDS.items():
            with ShardWriter(directory, f"{name}-00000-of-00001") as writer:
                for i in range(start, end):
                    writer.write(encode_digit(pixels[i], int(labels[i]), f"{name}/{i}.png"))
            counts = np.bincount(labels[start:end], minlength=10).tolist()
            splits[name] = Split(num_examples=end - start, class_counts=counts, shards=[writer.shard])
        manifest = Manifest(name="digits", source="digits", class_names=class_names, seed=0, splits=splits)
        manifest.save(directory)
    return manifest


def encode_digit(pixels: np.ndarray, label: int, filename: str) -> Example:
    content = io.BytesIO()
    grey = np.round(pixels.reshape(8, 8) / 16 * 255).astype(np.uint8)
    PIL.Image.fromarray(grey).save(content, "PNG")
    return Example(encoded=content.getvalue(), labels=(label,), format="png", filename=filename, height=8, width=8)


def run_info(manifest: Manifest, dataset_dir: pathlib.Path) -> RunInfo:
    return RunInfo(
        name="digits-softmax",
        identity="0123456789abcdef",
        dataset_dir=str(dataset_dir),
        dataset_hash=manifest.content_hash(),
        class_names=manifest.class_names,
        num_train_examples=1149,
        image_size_px=8,
        weights="none",
        precision="float32",
        batch_norm="frozen",
    )


def train_softmax_regression(splits, run: RunDir) -> dict[str, np.ndarray]:
    """Logs as a run does; returns the logits of every split."""
    x, y = splits["train"]
    rng = np.random.default_rng(0)
    weights, bias = np.zeros([64, 10]), np.zeros(10)
    log = MetricsLog(run.metrics_file)
    started = time.perf_counter()
    for step in range(1, NUM_STEPS + 1):
        batch = rng.choice(len(x), BATCH_SIZE, replace=False)
        logits = x[batch] @ weights + bias
        gradient = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(10)[y[batch]]) / BATCH_SIZE
        rate = 0.5 * (1 + np.cos(np.pi * step / NUM_STEPS))
        weights -= rate * x[batch].T @ gradient
        bias -= rate * gradient.sum(axis=0)
        if step % 5 == 0:
            now = time.perf_counter()
            metrics = loss_and_accuracy(logits, y[batch])
            metrics |= {"learning_rate": rate, "images_per_sec": 5 * BATCH_SIZE / (now - started), "skipped_steps": 0.0}
            log.write(step, "train", metrics)
            started = now
        if step % 40 == 0:
            log.write(
                step, "validation", loss_and_accuracy(splits["validation"][0] @ weights + bias, splits["validation"][1])
            )
    log.close()
    return {name: (x @ weights + bias).astype(np.float32) for name, (x, _) in splits.items()}


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return {
        "loss": -log_probabilities[np.arange(len(labels)), labels].mean(),
        "accuracy": (logits.argmax(axis=1) == labels).mean(),
    }


def write_evaluation(run: RunDir, labels, logits, class_names: list[str]) -> Evaluation:
    evaluation = summarize(labels, logits, class_names, split="test", global_step=NUM_STEPS)
    save_arrays(run.evaluation_dir, split="test", global_step=NUM_STEPS, labels=labels, logits=logits)
    evaluation.save(run.evaluation_dir)
    return evaluation


@pytest.fixture(scope="session")
def build_run():
    """`build_digits_run`, for a test that wants a run of its own."""
    return build_digits_run
