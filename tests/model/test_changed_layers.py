"""Networks some of whose layers are replaced (dropout, batch normalisation, grouped convolutions): nothing else
changes, and weights go in as before.
"""

import pathlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.model.backbones.registry import find_backbone
from trainer.model.classifier import backbone_of, build_classifier
from trainer.model.head import Head
from trainer.model.layers.batch_norm import SynchronizedBatchNormalization, changing_statistics
from trainer.model.layers.depthwise import DepthwiseConv, with_depthwise_operations
from trainer.model.layers.dropout import ExampleDropout
from trainer.model.weights import load_pretrained
from trainer.system.private_api.keras_graph import all_layers, is_seed

SIZE_PX = 32


def count(network: keras.Model, kind: type[keras.layers.Layer]) -> int:
    return sum(type(layer) is kind for layer in all_layers(network))


def test_random_layers_of_a_backbone_are_keyed_by_example_and_weights_go_in_as_before() -> None:
    name = "efficientnetb0"
    plain = find_backbone(name).build((SIZE_PX, SIZE_PX, 3))
    network = backbone_of(build_classifier(backbone=name, num_classes=3, image_size_px=SIZE_PX, head=Head(dropout=0.1)))
    assert not [v.path for v in network.variables if is_seed(v)]
    assert count(network, ExampleDropout) > 5 and count(network, keras.layers.Dropout) == 0
    network.set_weights(plain.get_weights())
    images = np.random.default_rng(0).uniform(0, 255, [2, SIZE_PX, SIZE_PX, 3]).astype(np.float32)
    np.testing.assert_allclose(network(images, training=False), plain(images, training=False), rtol=1e-5, atol=1e-6)


def test_batch_normalisations_are_synchronised_by_choice_and_a_weight_file_of_keras_still_fits(
    tmp_path: pathlib.Path,
) -> None:
    keras.utils.set_random_seed(1)
    plain = find_backbone("mobilenetv2").build((SIZE_PX, SIZE_PX, 3))
    plain.save_weights(tmp_path / "plain.weights.h5")
    classifier = build_classifier(
        backbone="mobilenetv2", num_classes=3, image_size_px=SIZE_PX, batch_norm="synchronized"
    )
    network = backbone_of(classifier)
    num_layers = count(plain, keras.layers.BatchNormalization)
    assert count(network, SynchronizedBatchNormalization) == num_layers > 50
    assert len(changing_statistics(classifier)) == 2 * num_layers
    load_pretrained(classifier, "mobilenetv2", str(tmp_path / "plain.weights.h5"))
    images = np.random.default_rng(0).uniform(0, 255, [2, SIZE_PX, SIZE_PX, 3]).astype(np.float32)
    np.testing.assert_allclose(network(images, training=False), plain(images, training=False), rtol=1e-5, atol=1e-6)


def test_grouped_convolutions_of_one_channel_are_depthwise_ones_and_a_weight_file_of_keras_still_fits(
    tmp_path: pathlib.Path,
) -> None:
    keras.utils.set_random_seed(1)
    plain = find_backbone("convnext_tiny").build((SIZE_PX, SIZE_PX, 3))
    plain.save_weights(tmp_path / "plain.weights.h5")
    classifier = build_classifier(backbone="convnext_tiny", num_classes=3, image_size_px=SIZE_PX)
    network = backbone_of(classifier)
    assert count(network, DepthwiseConv) == 18
    load_pretrained(classifier, "convnext_tiny", str(tmp_path / "plain.weights.h5"))
    images = np.random.default_rng(0).uniform(0, 255, [2, SIZE_PX, SIZE_PX, 3]).astype(np.float32)
    np.testing.assert_allclose(network(images, training=False), plain(images, training=False), rtol=1e-5, atol=1e-5)


@given(
    channels=st.integers(2, 6),
    multiplier=st.integers(1, 3),
    kernel_size=st.sampled_from([(3, 3), (2, 5)]),
    strides=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid"]),
)
@settings(max_examples=15, deadline=None)
def test_a_depthwise_operation_answers_like_the_grouped_convolution(
    channels: int, multiplier: int, kernel_size: tuple[int, int], strides: int, padding: str
) -> None:
    grouped = keras.layers.Conv2D(
        channels * multiplier, kernel_size, strides, padding, groups=channels, bias_initializer="normal"
    )
    images = keras.Input((9, 8, channels))
    network = keras.Model(images, grouped(images))
    replaced = with_depthwise_operations(network)
    assert count(replaced, DepthwiseConv) == 1
    replaced.set_weights(network.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 9, 8, channels)).astype(np.float32)
    np.testing.assert_allclose(replaced(x), network(x), rtol=1e-5, atol=1e-5)


def test_groups_of_several_channels_stay_as_they_are() -> None:
    images = keras.Input((8, 8, 8))
    network = keras.Model(images, keras.layers.Conv2D(8, 3, groups=4)(images))
    assert with_depthwise_operations(network) is network


def test_frozen_statistics_are_none_that_change() -> None:
    classifier = build_classifier(backbone="mobilenetv2", num_classes=3, image_size_px=SIZE_PX)
    assert changing_statistics(classifier) == []


def test_a_model_with_random_layers_of_its_own_is_refused_by_name() -> None:
    from trainer.config.config import Config
    from trainer.errors import ModelError
    from trainer.step.state import TrainState

    inputs = keras.Input([4])
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GaussianNoise(0.1, name="noise")(inputs)))
    with pytest.raises(ModelError, match="noise"):
        TrainState.create(model, Config(), precision="float32")
