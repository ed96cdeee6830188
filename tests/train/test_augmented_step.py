"""Augmentation in the training step: the same losses on any number of replicas, and targets as mixed as the images."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from replicas import IMAGE_SIZE_PX, NUM_CLASSES, Training

from trainer.data.augmentation.changes import draw_randomness
from trainer.data.augmentation.on_device import augment_batch
from trainer.data.augmentation.presets import resolve_augmentation
from trainer.data.input.batch import Batch
from trainer.data.sampling.order import ExampleOrder
from trainer.distribute.topology import BatchDivision
from trainer.step.train_step import TrainStep

pytestmark = pytest.mark.slow

NUM_EXAMPLES = 50
SEED = 3
# Frozen batch statistics, no dropout: whatever differs between replicas would be the augmentation.
OVERRIDES = ("optimizer.name=sgd", "optimizer.learning_rate=0.05", f"train.seed={SEED}", "train.label_smoothing=0.1")


class AugmentedTraining(Training):
    """Steps over a stream of `NUM_EXAMPLES` random images, as the input pipeline deals it."""

    def batches(self, num_steps: int, *, num_positions: int = 10**6, size_px: int = IMAGE_SIZE_PX) -> Any:
        division = BatchDivision(self.global_batch_size, self.num_replicas)
        random = np.random.default_rng(0)
        images = random.integers(0, 256, [NUM_EXAMPLES, size_px, size_px, 3], dtype=np.uint8)
        labels = random.integers(0, NUM_CLASSES, NUM_EXAMPLES)
        augmentation, order = resolve_augmentation(self.config.augment), ExampleOrder(NUM_EXAMPLES, SEED)
        b, elements = division.per_replica_batch_size, []
        for step in range(num_steps):
            for replica in range(self.num_replicas):
                start, stop = division.slice_of(replica)
                positions = step * self.global_batch_size + start + np.arange(b) % (stop - start)
                examples, visits = order.draw(positions)
                weights = (np.arange(b) < stop - start) & (positions < num_positions)
                randomness = draw_randomness(
                    augmentation, seed=SEED, visits=visits, examples=examples, image_size_px=size_px
                )
                e = examples.numpy()
                elements.append(Batch(images[e], labels[e], weights.astype(np.float32), positions, randomness))
        stacked = Batch(*(np.stack(column) for column in zip(*elements, strict=True)))
        return self.engine.distribute(tf.data.Dataset.from_tensor_slices(stacked))


def losses(num_replicas: int, preset: str, *, jit_compile: bool = False, **options: Any) -> np.ndarray:
    training = AugmentedTraining(
        num_replicas, jit_compile=jit_compile, overrides=(*OVERRIDES, f"augment.preset={preset}"), **options
    )
    return np.array([float(training.step(batch).loss) for batch in training.batches(5)])


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return losses(1, "strong", global_batch_size=10)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["xla off", "xla on"])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_losses_do_not_depend_on_the_number_of_replicas_or_on_xla(
    reference: np.ndarray, num_replicas: int, jit_compile: bool
) -> None:
    measured = losses(num_replicas, "strong", jit_compile=jit_compile, global_batch_size=10)
    np.testing.assert_allclose(measured, reference, rtol=1e-5)


def test_a_batch_that_does_not_divide_gives_the_same_losses(reference: np.ndarray) -> None:
    np.testing.assert_allclose(losses(3, "strong", global_batch_size=10), reference, rtol=1e-5)


def test_an_odd_batch_gives_the_same_losses() -> None:
    one, two = (losses(n, "strong", global_batch_size=9) for n in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_augmentation_changes_the_losses_and_differs_from_epoch_to_epoch(reference: np.ndarray) -> None:
    assert not np.allclose(losses(1, "none", global_batch_size=10)[0], reference[0], rtol=1e-3)
    # Five steps of ten are one epoch of the fifty examples: the sixth sees the images of the first in another order.
    training = AugmentedTraining(1, global_batch_size=50, overrides=(*OVERRIDES, "augment.preset=strong"))
    augmentation = resolve_augmentation(training.config.augment)
    seen = []
    for batch in training.batches(2):
        order = np.argsort(ExampleOrder(NUM_EXAMPLES, SEED).draw(batch.positions).examples.numpy())
        pixels, _ = augment_batch(
            augmentation, batch.images, tf.zeros([50, NUM_CLASSES]), batch.randomness, batch.positions
        )
        seen.append(pixels.numpy()[order])
    assert (seen[0] != seen[1]).any(axis=(1, 2, 3)).sum() >= 49


def test_the_loss_and_the_accuracy_are_those_of_the_mixed_images_and_targets() -> None:
    training = AugmentedTraining(1, global_batch_size=10, overrides=(*OVERRIDES, "augment.mixup_alpha=1.0"))
    (batch,) = training.batches(1, num_positions=8)
    one_hot = np.eye(NUM_CLASSES, dtype=np.float32)[batch.labels.numpy()]
    images, targets = augment_batch(
        resolve_augmentation(training.config.augment), batch.images, one_hot, batch.randomness, batch.positions
    )
    logits = training.model(images, training=False).numpy()[:8]
    metrics = training.step(batch)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    smoothed = targets.numpy()[:8] * 0.9 + 0.1 / NUM_CLASSES
    assert ((targets.numpy() > 0) & (targets.numpy() < 1)).any(), "something was mixed"
    assert float(metrics.loss) == pytest.approx(-(smoothed * log_probabilities).sum(axis=1).mean(), rel=1e-5)
    # The larger part of a mixup is the image itself.
    expected = (logits.argmax(axis=1) == batch.labels.numpy()[:8]).mean()
    assert float(metrics.accuracy) == pytest.approx(expected)


def test_a_weight_counts_for_its_own_row_of_a_mixed_pair() -> None:
    training = AugmentedTraining(1, global_batch_size=2, overrides=(*OVERRIDES, "augment.cutmix_alpha=1.0"))
    (batch,) = training.batches(1)
    weighted = batch._replace(weights=tf.constant([1.0, 0.0]))
    images, targets = augment_batch(
        resolve_augmentation(training.config.augment),
        batch.images,
        tf.one_hot(batch.labels, NUM_CLASSES),
        batch.randomness,
        batch.positions,
    )
    log_probabilities = tf.nn.log_softmax(training.model(images, training=False)).numpy()
    smoothed = targets.numpy() * 0.9 + 0.1 / NUM_CLASSES
    loss = float(training.step(weighted).loss)
    assert loss == pytest.approx(-(smoothed * log_probabilities).sum(axis=1)[0], rel=1e-5)


def test_randomness_that_was_drawn_for_another_augmentation_is_refused() -> None:
    training = AugmentedTraining(1, global_batch_size=4, overrides=(*OVERRIDES, "augment.preset=medium"))
    (batch,) = training.batches(1)
    other = AugmentedTraining(1, global_batch_size=4, overrides=(*OVERRIDES, "augment.preset=strong"))
    step = TrainStep(training.engine, training.state, other.config, num_train_steps=5, jit_compile=False)
    with pytest.raises(AssertionError, match="drawn for another augmentation"):
        step(batch)
