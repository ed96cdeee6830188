"""What stands on a backbone, and what of it is trained."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import ModelError
from trainer.model.backbones.blocks import blocks_of
from trainer.model.classifier import backbone_of, build_classifier
from trainer.model.freezing import learning_rate_factors, set_trainable
from trainer.model.head import Head
from trainer.model.layers.batch_norm import changing_statistics
from trainer.model.layers.dropout import dropout_keys
from trainer.model.weights import load_pretrained

SIZE_PX = 32
IMAGES = np.random.default_rng(0).integers(0, 256, [4, SIZE_PX, SIZE_PX, 3]).astype(np.float32)


def build(**arguments: Any) -> Any:
    keras.utils.set_random_seed(0)
    arguments = {"backbone": "efficientnet_lite0", "num_classes": 3, "image_size_px": SIZE_PX, **arguments}
    return build_classifier(**arguments)


@pytest.fixture(scope="module")
def classifier() -> Any:
    return build()


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("average", lambda x: x.mean(axis=(1, 2))), ("max", lambda x: x.max(axis=(1, 2))), ("flatten", None)],
)
def test_the_head_pools_as_asked(pooling: Any, expected: Any) -> None:
    features = np.random.default_rng(1).normal(size=[2, 3, 3, 5]).astype(np.float32)
    inputs = keras.Input([3, 3, 5])
    model = keras.Model(inputs, Head(pooling=pooling)(inputs, 4))
    pooled = features.reshape(2, -1) if expected is None else expected(features)
    kernel, bias = (v.numpy() for v in model.get_layer("head").weights)
    np.testing.assert_allclose(model(features), pooled @ kernel + bias, rtol=1e-5, atol=1e-6)


def test_hidden_layers_have_their_sizes_and_normalisation() -> None:
    inputs = keras.Input([7])
    model = keras.Model(inputs, Head(hidden_units=[6, 5], hidden_batch_norm=True, dropout=0.5)(inputs, 4))
    assert [layer.name for layer in model.layers[1:]] == [
        *("hidden1", "hidden1_bn", "hidden1_relu", "hidden1_dropout"),
        *("hidden2", "hidden2_bn", "hidden2_relu", "hidden2_dropout", "head"),
    ]
    assert [tuple(v.shape) for v in model.trainable_variables if "kernel" in v.path] == [(7, 6), (6, 5), (5, 4)]


def test_dropout_after_a_hidden_layer_is_keyed_by_example() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input([7])
    model = keras.Model(inputs, Head(hidden_units=[64], dropout=0.5)(inputs, 4))
    x = np.ones([8, 7], np.float32)
    with dropout_keys(0, tf.range(8, dtype=tf.int64)):
        first, second = model(x, training=True), model(x, training=True)
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(np.asarray(first), axis=0)) == 8, "each example has a mask of its own"
    np.testing.assert_array_equal(*np.asarray(model(x, training=False))[:2])


def test_one_logit_gives_two_classes_of_which_the_first_is_the_reference() -> None:
    model = build(num_classes=2, head=Head(has_one_logit=True))
    logits = model(IMAGES).numpy()
    assert logits.shape == (4, 2)
    np.testing.assert_array_equal(logits[:, 0], 0.0)
    assert tuple(model.get_layer("head").kernel.shape) == (1280, 1)


def trained(network: Any) -> list[str]:
    return [layer.name for layer in network.layers if layer.trainable and layer.variables]


def test_the_last_blocks_are_trained_and_the_others_not(classifier: Any) -> None:
    network = backbone_of(classifier)
    set_trainable(network, "top:2", keeps_statistics=False)
    expected = [layer.name for block in blocks_of(network)[-2:] for layer in block if layer.variables]
    assert sorted(trained(network)) == sorted(expected)
    set_trainable(network, "head", keeps_statistics=False)
    assert trained(network) == []
    set_trainable(network, "all", keeps_statistics=False)
    assert len(trained(network)) == sum(bool(layer.variables) for layer in network.layers)


def test_a_share_of_the_layers_and_a_pattern_choose_as_they_say(classifier: Any) -> None:
    network = backbone_of(classifier)
    weighted = [layer.name for layer in network.layers if layer.variables]
    set_trainable(network, "top:25%", keeps_statistics=False)
    assert len(trained(network)) == -(-len(weighted) // 4)
    assert weighted[-1] in trained(network)
    pattern = weighted[3].replace(".", "[.]")
    set_trainable(network, f"match:{pattern}", keeps_statistics=False)
    assert trained(network) == [weighted[3]]


def test_from_a_layer_on_everything_to_the_output_is_trained(classifier: Any) -> None:
    network = backbone_of(classifier)
    weighted = [layer.name for layer in network.layers if layer.variables]
    set_trainable(network, f"from:{weighted[-3]}", keeps_statistics=False)
    assert trained(network) == weighted[-3:]


def test_with_frozen_statistics_scale_and_offset_are_trained_and_nothing_else_of_a_normalisation() -> None:
    model = build(batch_norm="frozen_statistics", trainable="top:2")
    frozen = build(batch_norm="frozen", trainable="top:2")
    assert [v.path for v in model.variables] == [v.path for v in frozen.variables]
    model.set_weights(frozen.get_weights())
    more = {v.name for v in model.trainable_variables} - {v.name for v in frozen.trainable_variables}
    assert more == {"gamma", "beta"}
    assert changing_statistics(model) == []
    before = [v.numpy() for v in model.non_trainable_variables]
    np.testing.assert_array_equal(model(IMAGES, training=True), frozen(IMAGES, training=False))
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_the_frozen_part_keeps_its_statistics_and_drops_nothing() -> None:
    inputs = keras.Input([4, 4, 3])
    x = keras.layers.BatchNormalization(name="block1_bn")(keras.layers.Conv2D(4, 1, name="block1_conv")(inputs))
    x = keras.layers.BatchNormalization(name="block2_bn")(keras.layers.Conv2D(4, 1, name="block2_conv")(x))
    network = keras.Model(inputs, x)
    set_trainable(network, "match:block2_.*", keeps_statistics=False)
    before = {v.path: v.numpy() for v in network.non_trainable_variables}
    network(np.random.default_rng(0).normal(size=[8, 4, 4, 3]), training=True)
    changed = {v.path for v in network.non_trainable_variables if not np.array_equal(v.numpy(), before[v.path])}
    assert changed == {"block2_bn/moving_mean", "block2_bn/moving_variance"}
    set_trainable(network, "match:block2_.*", keeps_statistics=True)
    assert trained(network) == ["block2_conv"]


def test_each_block_learns_more_slowly_than_the_one_above(classifier: Any) -> None:
    network = backbone_of(classifier)
    factors = learning_rate_factors(classifier, network, 0.5)
    assert factors[id(classifier.get_layer("head").kernel)] == 1.0
    for distance, block in enumerate(reversed(blocks_of(network)), start=1):
        found = {factors[id(v)] for layer in block for v in layer.variables}
        assert found <= {0.5**distance}


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"trainable": "top:99"}, "has 18 blocks; use top:18 or fewer"),
        ({"trainable": "match:nothing.*"}, "no layer with weights of .* is called so; they are called"),
        ({"trainable": "from:nowhere"}, "has no layer of that name; such as"),
        ({"features_at": "block_nowhere"}, "which is no layer of"),
    ],
)
def test_parts_that_the_backbone_does_not_have_are_named(arguments: dict[str, Any], answer: str) -> None:
    with pytest.raises(ModelError, match=answer):
        build(**arguments)


def test_features_of_an_earlier_layer_are_those_of_the_whole_network_there() -> None:
    whole = build()
    load_pretrained(whole, "efficientnet_lite0", "bundled")
    network = backbone_of(whole)
    name = next(layer.name for layer in network.layers if layer is blocks_of(network)[6][-1])
    cut = build(features_at=name)
    load_pretrained(cut, "efficientnet_lite0", "bundled", features_at=name)
    expected = keras.Model(network.input, network.get_layer(name).output)(IMAGES / 128 - 127 / 128)
    found = backbone_of(cut)(IMAGES / 128 - 127 / 128)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
