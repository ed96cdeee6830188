"""The last layer of a saved classifier, through activations and networks around it; what has none is told."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from trainer.model.last_layer import find_last_layer, up_to_last_layer

layers = keras.layers


def _pooled(pixels: Any) -> Any:
    return layers.Dense(6, activation="relu", name="hidden")(
        layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(pixels))
    )


def _functional(end: Callable[[Any], Any]) -> Any:
    pixels = keras.Input((8, 8, 3))
    return keras.Model(pixels, end(_pooled(pixels)), name="mine")


def _nested() -> Any:
    inner = _functional(lambda x: layers.Dense(3)(x))
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), inner, layers.Softmax()])


def _sequential_head() -> Any:
    pixels = keras.Input((8, 8, 3))
    head = keras.Sequential([layers.Dense(6, name="hidden"), layers.Dense(3, activation="sigmoid")])
    return keras.Model(pixels, head(layers.GlobalAveragePooling2D()(pixels)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: _functional(lambda x: layers.Dense(3, activation="softmax")(x)), (3, "softmax")),
        (lambda: _functional(lambda x: layers.Dense(1, activation="sigmoid")(x)), (1, "sigmoid")),
        (lambda: _functional(lambda x: layers.Activation("softmax")(layers.Dense(3)(x))), (3, "softmax")),
        (_nested, (3, "softmax")),
        (_sequential_head, (3, "sigmoid")),
    ],
    ids=["softmax", "sigmoid", "activation behind it", "in a network", "in a sequential head"],
)
def test_the_last_layer_is_found_and_what_is_before_it_answers_as_before(model: Any, expected: tuple[int, str]) -> None:
    whole = model()
    last = find_last_layer(whole)
    assert (last.num_outputs, last.activation) == expected
    images = np.random.default_rng(0).random([2, 8, 8, 3], np.float32)
    logits = last.dense(up_to_last_layer(whole, last)(images))
    answer = keras.activations.get(
        "linear" if last.dense.activation is keras.activations.get(expected[1]) else expected[1]
    )
    np.testing.assert_allclose(answer(logits), whole(images), rtol=1e-5)


@pytest.mark.parametrize(
    "end",
    [
        lambda x: layers.Dense(3, activation="relu")(x),
        lambda x: layers.Dense(3, activation="softmax")(layers.Dense(3, activation="softmax")(x)) * 2.0,
        lambda x: layers.Softmax()(layers.Dense(3, activation="softmax")(x)),
        lambda x: layers.Flatten()(layers.Conv2D(3, 1)(layers.Reshape((1, 1, 6))(x))),
        lambda x: layers.Dropout(0.5)(layers.Dense(3)(x)),
    ],
    ids=["relu", "an operation", "two activations", "convolution", "dropout"],
)
def test_what_does_not_end_with_the_logits_of_a_dense_layer_has_none(end: Callable[[Any], Any]) -> None:
    assert find_last_layer(_functional(end)) is None
