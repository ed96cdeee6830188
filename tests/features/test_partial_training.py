"""A trunk inside the backbone: what is trained on it has the losses and the weights of the whole network."""

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config.config import load_config
from trainer.data.input.batch import Batch
from trainer.distribute.mirrored import make_engine
from trainer.distribute.topology import Topology
from trainer.features.runtimes import MAX_RELATIVE_DIFFERENCE, make_compute, relative_difference
from trainer.features.trunk import Cut, cut_classifier
from trainer.model.classifier import backbone_of, build_classifier
from trainer.model.head import Head
from trainer.step.state import TrainState
from trainer.step.train_step import TrainStep

NUM_STEPS, BATCH_SIZE, SIZE_PX = 100, 4, 32
IMAGES = np.random.default_rng(0).integers(0, 256, (24, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
LABELS = np.arange(24) % 3


def build_partly_frozen() -> Any:
    """The last block of the backbone is trained, with its batch statistics, and the head, which drops units."""
    keras.utils.set_random_seed(0)
    model = build_classifier(
        backbone="efficientnet_lite0",
        num_classes=3,
        image_size_px=SIZE_PX,
        batch_norm="per_replica",
        head=Head(dropout=0.2),
    )
    for layer in backbone_of(model).layers:
        layer.trainable = layer.name.startswith(("_blocks_15", "_conv_head", "_bn1"))
    return model


def train(state: TrainState, inputs: np.ndarray[Any, Any]) -> list[float]:
    """The losses of all steps on rows of `inputs`."""
    config = load_config(
        overrides=[f"train.global_batch_size={BATCH_SIZE}", "optimizer.name=sgd", "optimizer.learning_rate=1e-3"]
    )
    engine = make_engine(Topology(strategy="single", device="cpu", num_local_replicas=1))
    step = TrainStep(engine, state, config, num_train_steps=NUM_STEPS, jit_compile=False)
    losses = []
    for i in range(NUM_STEPS):
        rows = (np.arange(BATCH_SIZE) + i * BATCH_SIZE) % len(inputs)
        batch = Batch(
            tf.constant(inputs[rows]),
            tf.constant(LABELS[rows]),
            tf.ones(BATCH_SIZE),
            tf.constant(i * BATCH_SIZE + np.arange(BATCH_SIZE)),
            tf.zeros([BATCH_SIZE, 0]),
        )
        losses.append(float(step(batch).loss))
    return losses


def make_state(model: Any) -> TrainState:
    config = load_config(overrides=["optimizer.name=sgd"])
    return TrainState.create(model, config, precision="float32")


@pytest.fixture(scope="module")
def cut() -> Cut:
    found = cut_classifier(build_partly_frozen())
    assert found is not None
    return found


def test_a_hundred_steps_on_features_end_with_the_weights_of_a_hundred_steps_on_images(cut: Cut) -> None:
    whole, parted = make_state(build_partly_frozen()), make_state(build_partly_frozen())
    own = cut_classifier(parted.model)
    assert own is not None and own.layer == cut.layer == "_blocks_14__add" and own.feature_shape == (1, 1, 192)
    before = [np.array(v) for v in parted.model.trainable_variables]
    expected = train(whole, IMAGES)
    features = np.asarray(own.trunk(IMAGES, training=False))
    losses = train(dataclasses.replace(parted, model=own.tail), features)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1] != losses[0]
    for variable, reference in zip(parted.model.variables, whole.model.variables, strict=True):
        scale = max(float(np.abs(reference).max()), 1e-6)
        np.testing.assert_allclose(np.array(variable), np.array(reference), rtol=1e-5, atol=1e-5 * scale)
    assert len(before) > 8
    assert any(not np.array_equal(a, v) for a, v in zip(before, parted.model.trainable_variables, strict=True))


def test_another_runtime_gives_a_block_inside_the_backbone_as_keras_does(cut: Cut) -> None:
    compute = make_compute("onnxruntime", cut.trunk)
    assert relative_difference(compute, cut.trunk, IMAGES) <= MAX_RELATIVE_DIFFERENCE
