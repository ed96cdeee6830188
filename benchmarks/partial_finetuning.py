"""Compare fine-tuning the last blocks on cached features with Keras's fit.

    python benchmarks/partial_finetuning.py

Both train the last blocks of EfficientNet-Lite0 (block 15 and later) and the head at 224 px on images in memory
(scikit-learn's digits, enlarged): SGD in batches of 32, float32, frozen batch statistics, the same trainable layers.
Ours computes the trunk once with ONNX Runtime, which is counted, and trains on its output; fit runs the whole network
in every epoch. Each makes a step first, so that tracing is not counted. They take turns. Exit status 1 if the median
ratio is below 2. --quick: one round with few images, without a verdict.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from typing import Any

from trainer.system import tf_runtime

tf_runtime.configure(use_gpus=False)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from trainer.config.config import load_config  # noqa: E402
from trainer.data.input.batch import Batch  # noqa: E402
from trainer.distribute.mirrored import make_engine  # noqa: E402
from trainer.distribute.topology import Topology  # noqa: E402
from trainer.features.runtimes import make_compute  # noqa: E402
from trainer.features.trunk import cut_classifier  # noqa: E402
from trainer.model.classifier import backbone_of, build_classifier  # noqa: E402
from trainer.model.weights import load_pretrained  # noqa: E402
from trainer.step.state import TrainState  # noqa: E402
from trainer.step.train_step import TrainStep  # noqa: E402

BACKBONE, SIZE_PX, BATCH_SIZE, LEARNING_RATE = "efficientnet_lite0", 224, 32, 0.01
TRAINED = ("_blocks_15", "_conv_head", "_bn1")
MIN_RATIO = 2.0


def build() -> Any:
    keras.utils.set_random_seed(0)
    model = build_classifier(backbone=BACKBONE, num_classes=10, image_size_px=SIZE_PX, batch_norm="frozen")
    load_pretrained(model, BACKBONE, "bundled")
    for layer in backbone_of(model).layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name.startswith(TRAINED) and not is_norm
    return model


class Ours:
    """Computes the trunk once, then trains on its features."""

    def __init__(self) -> None:
        model = build()
        cut = cut_classifier(model)
        assert cut is not None, "most of the backbone is frozen"
        config = load_config(
            overrides=[
                f"train.global_batch_size={BATCH_SIZE}",
                "optimizer.name=sgd",
                f"optimizer.learning_rate={LEARNING_RATE}",
                "optimizer.momentum=0.0",
                "optimizer.schedule=constant",
            ]
        )
        state = TrainState.create(model, config, precision="float32")
        engine = make_engine(Topology(strategy="single", device="cpu", num_local_replicas=1))
        trained = dataclasses.replace(state, model=cut.tail)
        self._step = TrainStep(engine, trained, config, num_train_steps=1, jit_compile=False)
        self._compute = make_compute("onnxruntime", cut.trunk)

    def secs(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], num_epochs: int) -> float:
        self._train(self._compute(images[:BATCH_SIZE]), labels[:BATCH_SIZE], 1)
        started = time.perf_counter()
        parts = [self._compute(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
        self._train(np.concatenate(parts), labels, num_epochs)
        return time.perf_counter() - started

    def _train(self, features: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], num_epochs: int) -> None:
        loss: Any = 0.0
        for epoch in range(num_epochs):
            order = np.random.default_rng(epoch).permutation(len(features))
            for i in range(0, len(order), BATCH_SIZE):
                rows = order[i : i + BATCH_SIZE]
                batch = Batch(
                    tf.constant(features[rows]),
                    tf.constant(labels[rows]),
                    tf.ones(BATCH_SIZE),
                    tf.range(BATCH_SIZE, dtype=tf.int64),
                    tf.zeros([BATCH_SIZE, 0]),
                )
                loss = self._step(batch).loss
        float(loss)


class Fit:
    """Runs Keras's fit on the whole network, with the same trainable layers."""

    def __init__(self) -> None:
        self._model = build()
        self._model.compile(
            keras.optimizers.SGD(LEARNING_RATE),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )

    def secs(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], num_epochs: int) -> float:
        self._model.fit(images[:BATCH_SIZE], labels[:BATCH_SIZE], batch_size=BATCH_SIZE, epochs=1, verbose=0)
        started = time.perf_counter()
        self._model.fit(images, labels, batch_size=BATCH_SIZE, epochs=num_epochs, verbose=0)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    is_quick = parser.parse_args().quick
    num_images, num_epochs, num_rounds = (64, 2, 1) if is_quick else (640, 10, 3)
    digits = load_digits()
    small = np.repeat(digits.images[:num_images, :, :, np.newaxis] * (255 / 16), 3, axis=3)
    images = tf.image.resize(small, (SIZE_PX, SIZE_PX)).numpy().astype(np.float32)
    labels = digits.target[:num_images].astype(np.int64)
    contestants: dict[str, Ours | Fit] = {"ours": Ours(), "fit": Fit()}
    secs: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(num_rounds):
        for name, contestant in contestants.items():
            secs[name].append(contestant.secs(images, labels, num_epochs))
    for name, times in secs.items():
        print(f"{name:5} {', '.join(f'{value:.1f}' for value in times)} s for {num_epochs} epochs of {num_images}")
    ratio = statistics.median(fit / ours for fit, ours in zip(secs["fit"], secs["ours"], strict=True))
    print(f"{ratio:.1f} times faster; at least {MIN_RATIO:g}")
    if ratio < MIN_RATIO and not is_quick:
        sys.exit(1)


if __name__ == "__main__":
    main()
