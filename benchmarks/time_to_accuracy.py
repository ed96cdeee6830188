"""Compare the time to a trained, evaluated head on a frozen backbone with the Keras tutorial's.

    python benchmarks/time_to_accuracy.py

    ours       trainer launch on the folder of images: prepares it, computes features once, trains the head
    again      the same command again, with a new run directory
    tutorial   image_dataset_from_directory, the frozen backbone, fit; TensorFlow as installed
    better     the same with oneDNN's kernels on and decoded images cached

All use the same 2,000 JPEGs (1,600 for training, 400 for validation), the same frozen EfficientNet-Lite0 with its
ImageNet weights at 224 px, Adam at 1e-3 in batches of 32, and 10 epochs with a validation after each. Each is a fresh
process; they take turns, and the machine should be idle. "Whole" is from start to end of the process; "work" is, for
ours, computing the features and training after the first step, for the rivals training after the first step. The
images are Fashion-MNIST (Debian package dataset-fashion-mnist), enlarged to 256 px, or with --source digits those of
scikit-learn. Exit status 1 if a ratio is too low, the accuracies differ by more than 0.3 points, or features differ
from Keras's by more than 1e-4. --quick: a smoke test of one round with a tenth of the images and two epochs, which
judges only what does not depend on time.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

NUM_IMAGES, NUM_EPOCHS, NUM_ROUNDS = 2000, 10, 3
VALIDATION_SHARE = 0.2
BATCH_SIZE, LEARNING_RATE, SIZE_PX, STORED_PX = 32, 1e-3, 224, 256
BACKBONE = "efficientnet_lite0"
MAX_ACCURACY_DIFFERENCE, MAX_FEATURE_DIFFERENCE = 0.003, 1e-4
NUM_COMPARED = 32
# Minimum ratios of the rival's time to ours: whole, work, and whole for the second run on the same data.
MIN_RATIOS = {"tutorial": (12.0, 20.0, 40.0), "better": (6.0, 10.0, 18.0)}


def make_folder(folder: pathlib.Path, source_name: str, num_images: int) -> None:
    """Write `train` and `val` with a folder of JPEGs for each class, balanced."""
    from trainer.data.sources import open_source

    source = open_source(source_name)
    by_class: dict[str, list[Any]] = {}
    for candidate in source.candidates():
        by_class.setdefault(candidate.class_names[0].replace("/", "-"), []).append(candidate)
    per_class = num_images // len(by_class)
    for name, candidates in by_class.items():
        for i, candidate in enumerate(candidates[:per_class]):
            split = "val" if i < per_class * VALIDATION_SHARE else "train"
            path = folder / split / name / f"{i:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.open(io.BytesIO(source.read(candidate))).convert("RGB")
            image.resize((STORED_PX, STORED_PX), Image.Resampling.BICUBIC).save(path, quality=90)


def run_ours(folder: pathlib.Path, run_dir: pathlib.Path, num_epochs: int) -> dict[str, Any]:
    """Train like `trainer launch`, and time the computation of the features."""
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)
    from trainer.config.config import load_config
    from trainer.data.preparation.auto_prepare import prepare_beside
    from trainer.data.preparation.prepare import PrepareOptions
    from trainer.launch import plan_run, run_session, start_run
    from trainer.training import input

    # Like launch, but without a test split.
    dataset_dir = prepare_beside(folder, options=PrepareOptions(test_fraction=0.0), note=_say)
    settings = [
        f"data.path={dataset_dir}",
        "distribute.device=cpu",
        f"model.backbone={BACKBONE}",
        f"model.image_size_px={SIZE_PX}",
        "model.trainable=head",
        f"train.epochs={num_epochs}",
        f"train.global_batch_size={BATCH_SIZE}",
        "optimizer.name=adam",
        f"optimizer.learning_rate={LEARNING_RATE}",
        "optimizer.schedule=constant",
    ]
    planned = plan_run.plan_run(load_config(overrides=settings), run_dir=run_dir, resume=True, note=_say)
    open_features, secs = input.open_features, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        inputs = open_features(*args, **kwargs)
        secs.append(time.perf_counter() - started)
        return inputs

    setattr(run_session, "open_features", timed)  # noqa: B010  a name that it imports
    start_run.start_run(planned, _say)
    lines = [json.loads(line) for line in planned.run.metrics_file.read_text(encoding="utf-8").splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    return {
        "work_secs": sum(secs) + lines[-1]["time"] - lines[0]["time"],
        "accuracy": validation[-1]["accuracy"],
        "runtime": planned.plan.features.runtime,
        "features_dir": planned.plan.features.dir,
        "dataset_dir": planned.plan.data.dataset_dir,
    }


def run_rival(folder: pathlib.Path, num_epochs: int, *, caches: bool) -> dict[str, Any]:
    """Run the tutorial; only the environment configures its TensorFlow."""
    import keras
    import tensorflow as tf

    from trainer.model.classifier import build_classifier
    from trainer.model.weights import load_pretrained

    def load(split: str) -> Any:
        return keras.utils.image_dataset_from_directory(
            folder / split, image_size=(SIZE_PX, SIZE_PX), batch_size=BATCH_SIZE, shuffle=split == "train", seed=0
        )

    train, validation = load("train"), load("val")
    num_classes = len(train.class_names)
    if caches:
        train, validation = train.cache().prefetch(tf.data.AUTOTUNE), validation.cache().prefetch(tf.data.AUTOTUNE)
    keras.utils.set_random_seed(0)
    model = build_classifier(backbone=BACKBONE, num_classes=num_classes, image_size_px=SIZE_PX, trainable="head")
    load_pretrained(model, BACKBONE, "bundled")
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    started: list[float] = []

    class FromFirstStep(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if not started:
                started.append(time.perf_counter())

    history = model.fit(train, validation_data=validation, epochs=num_epochs, verbose=0, callbacks=[FromFirstStep()])
    secs = time.perf_counter() - started[0]
    return {"work_secs": secs, "accuracy": float(history.history["val_accuracy"][-1])}


def compare_features(dataset_dir: str, features_dir: str) -> float:
    """Return the largest difference of stored features from Keras's, relative to the largest feature."""
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)
    from trainer.data.dataset.manifest import Manifest
    from trainer.data.dataset.storage import parse_path
    from trainer.data.decode.geometry import Geometry
    from trainer.data.input.pixel_cache import decode_split
    from trainer.features.trunk import cut_classifier
    from trainer.model.classifier import build_classifier
    from trainer.model.weights import load_pretrained

    path = parse_path(dataset_dir)
    num_classes = Manifest.load(path).num_classes
    model = build_classifier(backbone=BACKBONE, num_classes=num_classes, image_size_px=SIZE_PX, trainable="head")
    load_pretrained(model, BACKBONE, "bundled")
    cut = cut_classifier(model)
    assert cut is not None, "the backbone is frozen"
    images = next(decode_split(path, "train", Geometry(image_size_px=SIZE_PX, resize="crop")))[:NUM_COMPARED]
    expected = np.asarray(cut.trunk(images.astype(np.float32), training=False))
    (file,) = pathlib.Path(features_dir).glob("train-*/features.float32")
    found = np.fromfile(file, np.float32).reshape(-1, *cut.feature_shape)[: len(images)]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def take_turn(who: str, folder: pathlib.Path, run_dir: pathlib.Path, num_epochs: int) -> dict[str, Any]:
    """Run a contestant in a fresh process and measure its wall time."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    environment |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if who == "better":
        environment["TF_ENABLE_ONEDNN_OPTS"] = "1"
    command = [sys.executable, __file__, "--role", who, "--folder", str(folder), "--run-dir", str(run_dir)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--epochs", str(num_epochs)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    return {"whole_secs": time.perf_counter() - started, **json.loads(done.stdout.splitlines()[-1])}


def judge(turns: dict[str, list[dict[str, Any]]], *, is_quick: bool) -> list[str]:
    """Print the table; return what failed."""

    def median(who: str, what: str) -> float:
        return float(statistics.median(turn[what] for turn in turns[who]))

    for who, results in turns.items():
        whole = ", ".join(f"{turn['whole_secs']:.1f}" for turn in results)
        work = ", ".join(f"{turn['work_secs']:.1f}" for turn in results)
        print(f"{who:9} whole {whole} s; work {work} s; accuracy {median(who, 'accuracy'):.4f}")
    failures = []
    for rival, least in MIN_RATIOS.items():
        ratios = (
            median(rival, "whole_secs") / median("ours", "whole_secs"),
            median(rival, "work_secs") / median("ours", "work_secs"),
            median(rival, "whole_secs") / median("again", "whole_secs"),
        )
        for what, ratio, wanted in zip(("from cold start", "on the work", "a second run"), ratios, least, strict=True):
            print(f"against {rival}, {what}: {ratio:.1f} times faster; at least {wanted:g}")
            if ratio < wanted and not is_quick:
                failures.append(f"{what} against {rival}")
    accuracies = [statistics.mean(turn["accuracy"] for turn in turns[who]) for who in ("ours", "tutorial")]
    if abs(accuracies[0] - accuracies[1]) > MAX_ACCURACY_DIFFERENCE and not is_quick:
        failures.append("accuracy")
    first = turns["ours"][0]
    difference = compare_features(first["dataset_dir"], first["features_dir"])
    print(f"features by {first['runtime']} differ from Keras's by {difference:.1e} of the largest")
    if not difference <= MAX_FEATURE_DIFFERENCE:
        failures.append("features")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="fashion-mnist", help="fashion-mnist or digits")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--role", choices=("ours", "again", "tutorial", "better"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--run-dir", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role in ("ours", "again"):
        print(json.dumps(run_ours(args.folder, args.run_dir, args.epochs)))
        return
    if args.role:
        print(json.dumps(run_rival(args.folder, args.epochs, caches=args.role == "better")))
        return
    num_images, num_epochs, num_rounds = (200, 2, 1) if args.quick else (NUM_IMAGES, NUM_EPOCHS, NUM_ROUNDS)
    with tempfile.TemporaryDirectory() as workspace:
        turns: dict[str, list[dict[str, Any]]] = {"ours": [], "again": [], "tutorial": [], "better": []}
        made = pathlib.Path(workspace) / "images"
        make_folder(made, args.source, num_images)
        for i in range(num_rounds):
            # The second run finds what the first left beside the images; the rivals do not.
            place = pathlib.Path(workspace) / str(i)
            place.mkdir()
            folder = place / "images"
            subprocess.run(["cp", "-r", str(made), str(folder)], check=True)
            for who, results in turns.items():
                results.append(take_turn(who, folder, place / who, num_epochs))
        failures = judge(turns, is_quick=args.quick)
    sys.exit(f"failed: {', '.join(failures)}" if failures else None)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    main()
