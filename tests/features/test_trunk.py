"""Where a classifier is cut, found from its layers alone; and that its two parts together are the classifier."""

import keras
import numpy as np
import pytest

from trainer.features.trunk import Cut, cut_classifier, digest_of
from trainer.model.classifier import build_classifier
from trainer.model.head import Head
from trainer.model.layers.batch_norm import with_synchronized_statistics
from trainer.model.layers.dropout import ExampleDropout

layers = keras.layers


def build(*, seed: int = 0, num_filters: int = 4, blocks: int = 3) -> keras.Model:
    """A network of residual blocks inside a classifier, as `build_classifier` makes them."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(num_filters, 3, padding="same", name="stem")(inputs)
    for i in range(blocks):
        y = layers.Conv2D(num_filters, 3, padding="same", name=f"conv{i}")(x)
        y = layers.BatchNormalization(name=f"norm{i}", trainable=False)(y)
        x = layers.Add(name=f"add{i}")([x, layers.ReLU(name=f"relu{i}")(y)])
    network = keras.Model(inputs, x, name="network")
    images = keras.Input((16, 16, 3), name="images")
    x = layers.Rescaling(1 / 128, name="scale")(images)
    x = layers.GlobalAveragePooling2D(name="pool")(network(x))
    return keras.Model(images, layers.Dense(5, name="head")(x), name="classifier")


def freeze(model: keras.Model, trained: str) -> keras.Model:
    """Only the layers of the network whose names start like this are trained, and the head."""
    for layer in model.get_layer("network").layers:
        layer.trainable = bool(trained) and layer.name.startswith(trained)
    return model


def assert_parts_make_the_whole(model: keras.Model, cut: Cut) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *model.input_shape[1:])).astype(np.float32)
    features = cut.trunk(images, training=False)
    assert features.shape[1:] == cut.feature_shape
    np.testing.assert_allclose(cut.tail(features, training=False), model(images, training=False), rtol=1e-5, atol=1e-6)
    assert [id(v) for v in cut.tail.trainable_variables] == [id(v) for v in model.trainable_variables]
    assert not cut.trunk.trainable_variables


@pytest.mark.parametrize(
    ("trained", "layer"),
    [("", "pool"), ("conv2", "add1"), ("norm2", "conv2"), ("conv1", "add0"), ("conv0", "stem"), ("relu", "pool")],
)
def test_the_cut_lies_before_the_first_layer_that_is_trained(trained: str, layer: str) -> None:
    model = freeze(build(), trained)
    cut = cut_classifier(model)
    assert cut is not None
    if trained == "norm2":  # the block's input goes around it to the sum, so that its output alone does not decide
        layer = "add1"
    assert cut.layer == layer
    assert_parts_make_the_whole(model, cut)


def test_a_network_that_is_trained_from_its_first_layer_has_no_trunk() -> None:
    assert cut_classifier(freeze(build(), "stem")) is None
    assert cut_classifier(freeze(build(), "")) is not None


def test_unfrozen_batch_statistics_are_behind_the_cut() -> None:
    """Without scale and offset a batch normalisation trains nothing; its statistics change all the same."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first", trainable=False)(inputs)
    x = layers.BatchNormalization(center=False, scale=False, name="norm")(x)
    x = layers.Conv2D(4, 3, name="second", trainable=False)(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D(name="pool")(x)))
    cuts = []
    for is_trainable in (True, False):
        model.get_layer("norm").trainable = is_trainable
        cuts.append(cut_classifier(model))
    assert [cut.layer for cut in cuts if cut] == ["first", "pool"]
    synchronized = with_synchronized_statistics(model)
    synchronized.get_layer("norm").trainable = True
    cut = cut_classifier(synchronized)
    assert cut is not None and cut.layer == "first"


@pytest.mark.parametrize(
    "random_layer",
    [lambda: ExampleDropout(0.2, name="random"), lambda: layers.Dropout(0.2), lambda: layers.GaussianNoise(0.1)],
    ids=["example dropout", "dropout", "noise"],
)
def test_random_layers_are_behind_the_cut(random_layer) -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first", trainable=False)(inputs)
    x = layers.Conv2D(4, 3, name="second", trainable=False)(random_layer()(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    cut = cut_classifier(model)
    assert cut is not None and cut.layer == "first"


def test_a_frozen_network_is_fixed_up_to_the_dropout_of_the_head() -> None:
    classifier = build_classifier(
        backbone="efficientnet_lite0", num_classes=3, image_size_px=32, trainable="head", head=Head(dropout=0.5)
    )
    cut = cut_classifier(classifier)
    assert cut is not None and cut.layer == "pool" and cut.feature_shape == (1280,)
    assert_parts_make_the_whole(classifier, cut)


def test_the_digest_is_of_numbers_and_connections_and_not_of_names() -> None:
    def digest(model: keras.Model) -> str:
        cut = cut_classifier(freeze(model, "conv2"))
        assert cut is not None
        return digest_of(cut.trunk)

    reference = digest(build())
    assert digest(build()) == reference
    changed = build()
    changed.get_layer("network").get_layer("norm0").moving_mean.assign([0, 0, 0, 1e-3])
    assert digest(changed) != reference
    trained = build()
    trained.get_layer("head").kernel.assign(trained.get_layer("head").kernel * 2)
    assert digest(trained) == reference, "the tail is no part of it"
    assert digest(build(seed=1)) != reference
