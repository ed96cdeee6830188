"""Masks that belong to examples: statistics, independence of the batch, and what replaces Keras's layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.layers.dropout import ExampleDropout, dropout_keys, with_example_dropout


def masks(positions: list[int], *, seed: int = 0, rate: float = 0.3, salt: int = 1, num_units: int = 64) -> np.ndarray:
    layer = ExampleDropout(rate, salt=salt)
    with dropout_keys(seed, tf.constant(positions, tf.int64)):
        return layer(tf.ones([len(positions), num_units]), training=True).numpy()


def test_the_kept_share_and_the_scale_are_those_of_dropout() -> None:
    values = masks(list(range(1000)), rate=0.3)
    assert set(np.unique(values)) == {0.0, np.float32(1 / 0.7)}
    # Binomial with n = 64,000: five standard deviations are 0.009.
    assert (values > 0).mean() == pytest.approx(0.7, abs=0.009)


def test_units_examples_layers_and_seeds_are_uncorrelated() -> None:
    values = masks(list(range(2000)), rate=0.5) - 1
    others = [
        np.roll(values, 1, axis=1),
        np.roll(values, 1, axis=0),
        masks(list(range(2000)), rate=0.5, salt=2) - 1,
        masks(list(range(2000)), rate=0.5, seed=1) - 1,
        masks(list(range(2**32, 2**32 + 2000)), rate=0.5) - 1,
    ]
    for other in others:  # 128,000 products of +-1: five standard deviations are 0.014
        assert abs((values * other).mean()) < 0.014


def test_a_mask_does_not_depend_on_the_batch() -> None:
    together = masks([5, 6, 7, 8])
    assert np.array_equal(together[2:], masks([7, 8]))
    assert not np.array_equal(together[0], together[1])


def test_the_compiled_masks_are_the_same() -> None:
    layer = ExampleDropout(0.4)

    @tf.function(jit_compile=True)
    def compiled(positions: tf.Tensor) -> tf.Tensor:
        with dropout_keys(3, positions):
            return layer(tf.ones([4, 10]), training=True)

    positions = tf.constant([1, 2, 3, 2**40], tf.int64)
    with dropout_keys(3, positions):
        assert np.array_equal(compiled(positions), layer(tf.ones([4, 10]), training=True))


def test_without_training_nothing_is_dropped_and_without_keys_training_is_an_error() -> None:
    layer = ExampleDropout(0.5)
    assert np.array_equal(layer(tf.ones([2, 3]), training=False), np.ones([2, 3]))
    with pytest.raises(RuntimeError, match="outside of dropout_keys"):
        layer(tf.ones([2, 3]), training=True)


def test_dropout_layers_of_a_network_are_replaced_and_everything_else_stays() -> None:
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.Dropout(0.2, noise_shape=(None, 1, 1, 1), name="depth")(x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dropout(0.1, name="units")(x))
    changed = with_example_dropout(model)
    assert [type(layer).__name__ for layer in changed.layers].count("ExampleDropout") == 2
    assert [layer.name for layer in changed.layers[1:]] == [layer.name for layer in model.layers[1:]]
    changed.set_weights(model.get_weights())
    images = np.random.default_rng(0).random([2, 8, 8, 3], np.float32)
    assert np.array_equal(changed(images, training=False), model(images, training=False))
    depth = changed.get_layer("depth")
    with dropout_keys(0, tf.range(200, dtype=tf.int64)):
        dropped = depth(tf.ones([200, 2, 2, 1]), training=True).numpy()
    # Whole examples go, or none of their units.
    assert set(dropped.reshape(200, -1).any(1) * 1.0 - dropped.reshape(200, -1).all(1)) == {0.0}
    assert with_example_dropout(keras.Model(inputs, keras.layers.Flatten()(inputs))).count_params() == 0
