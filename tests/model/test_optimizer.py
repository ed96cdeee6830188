"""The update rules against Keras's own, and the schedule at its corners."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config.config import load_config
from trainer.config.training import OptimizerConfig
from trainer.data.sampling.epochs import Epochs
from trainer.errors import ConfigError
from trainer.step.optimizer import Optimizer, clipping_factor
from trainer.step.schedule import Schedule

SHAPES = [(3, 3, 2, 4), (4,)]


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (OptimizerConfig(name="sgd", momentum=0.9), keras.optimizers.SGD(0.01, momentum=0.9)),
        (OptimizerConfig(name="sgd", momentum=0.0), keras.optimizers.SGD(0.01)),
        (OptimizerConfig(name="adam"), keras.optimizers.Adam(0.01)),
        (OptimizerConfig(name="adamw", weight_decay=0.1), keras.optimizers.AdamW(0.01, weight_decay=0.1)),
    ],
    ids=["momentum", "sgd", "adam", "adamw"],
)
def test_twenty_updates_equal_those_of_keras(config: OptimizerConfig, reference: Any) -> None:
    random = np.random.default_rng(0)
    start = [random.normal(size=shape).astype(np.float32) for shape in SHAPES]
    variables = [keras.Variable(value, name=name) for value, name in zip(start, ("kernel", "bias"), strict=True)]
    if config.name == "adamw":
        reference.exclude_from_weight_decay(var_names=["bias"])
    optimizer = Optimizer.of_variables(config, variables)
    parameters = [tf.constant(value) for value in start]
    slots = [[tf.zeros(shape) for _ in range(optimizer.num_slots)] for shape in SHAPES]
    for i in range(20):
        gradients = [random.normal(size=shape).astype(np.float32) for shape in SHAPES]
        parameters, slots = optimizer.update(
            parameters, [tf.constant(g) for g in gradients], slots, learning_rate=0.01, num_updates=tf.constant(i)
        )
        reference.apply([tf.constant(g) for g in gradients], variables)
    for parameter, variable in zip(parameters, variables, strict=True):
        np.testing.assert_allclose(parameter.numpy(), variable.numpy(), rtol=2e-5, atol=1e-6)


def test_weight_decay_moves_kernels_and_leaves_biases() -> None:
    config = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.5)
    variables = [keras.Variable(np.ones(shape, np.float32)) for shape in SHAPES]
    optimizer = Optimizer.of_variables(config, variables)
    zeros = [tf.zeros(shape) for shape in SHAPES]
    (kernel, bias), _ = optimizer.update(
        [tf.ones(shape) for shape in SHAPES], zeros, [[z] for z in zeros], learning_rate=0.1, num_updates=tf.constant(0)
    )
    np.testing.assert_allclose(kernel.numpy(), 0.95, rtol=1e-6)
    np.testing.assert_array_equal(bias.numpy(), 1.0)


@pytest.mark.parametrize(
    ("norm", "clip_norm", "factor"), [(5.0, 1.0, 0.2), (0.5, 1.0, 1.0), (0.0, 1.0, 1.0), (5.0, None, 1.0)]
)
def test_clipping_brings_a_norm_above_the_limit_down_to_it(norm: float, clip_norm: float | None, factor: float) -> None:
    assert float(clipping_factor(tf.constant(norm), clip_norm)) == pytest.approx(factor)


def test_the_schedule_warms_up_then_falls_along_a_cosine_to_zero() -> None:
    schedule = Schedule(kind="cosine", peak=1.0, warmup_steps=4, num_train_steps=104)
    rates = [float(schedule.at(tf.constant(step))) for step in range(105)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == pytest.approx(1.0)
    assert rates[54] == pytest.approx(0.5, abs=1e-6)
    assert rates[104] == pytest.approx(0.0, abs=1e-6)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[4:]))


def test_lars_steps_in_proportion_to_the_weights_and_leaves_biases_to_sgd() -> None:
    config = OptimizerConfig(name="lars", momentum=0.5, weight_decay=0.1, trust_coefficient=0.01)
    random = np.random.default_rng(0)
    kernel, bias = (random.normal(size=shape) for shape in SHAPES)
    optimizer = Optimizer.of_variables(config, [keras.Variable(kernel), keras.Variable(bias)])
    parameters = [tf.constant(kernel, tf.float32), tf.constant(bias, tf.float32)]
    slots = [[tf.zeros(shape)] for shape in SHAPES]
    velocities = [np.zeros(shape) for shape in SHAPES]
    for i in range(5):
        gradients = [random.normal(size=shape) for shape in SHAPES]
        parameters, slots = optimizer.update(
            parameters,
            [tf.constant(g, tf.float32) for g in gradients],
            slots,
            learning_rate=0.2,
            num_updates=tf.constant(i),
        )
        decayed = gradients[0] + 0.1 * kernel
        rate = 0.2 * 0.01 * np.linalg.norm(kernel) / np.linalg.norm(decayed)
        velocities = [0.5 * velocities[0] + rate * decayed, 0.5 * velocities[1] + 0.2 * gradients[1]]
        kernel, bias = kernel - velocities[0], bias - velocities[1]
    np.testing.assert_allclose(parameters[0], kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parameters[1], bias, rtol=1e-5, atol=1e-6)


def test_a_parameter_has_its_own_rate_and_counts_its_updates_from_when_it_is_trained() -> None:
    config = OptimizerConfig(name="adam")
    variables = [keras.Variable(np.zeros(2, np.float32)) for _ in range(2)]
    optimizer = Optimizer.of_variables(
        config, variables, factors={id(variables[1]): 0.1}, starts={id(variables[1]): 1000}
    )
    zeros = [[tf.zeros(2)] * 2] * 2
    (first, second), _ = optimizer.update(
        [tf.zeros(2)] * 2, [tf.ones(2)] * 2, zeros, learning_rate=0.01, num_updates=tf.constant(1000)
    )
    # Adam's first step is the learning rate; with the count of the run it would be three times as long.
    np.testing.assert_allclose(second, -0.001, rtol=1e-4)
    np.testing.assert_allclose(first, -0.01 * 0.1 / np.sqrt(0.001), rtol=0.4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["optimizer.schedule=linear"], {0: 1.0, 25: 0.75, 50: 0.5, 99: 0.01}),
        (["optimizer.schedule=linear", "optimizer.warmup_steps=20"], {0: 1 / 21, 20: 1.0, 60: 0.5}),
        (
            ["optimizer.schedule=step", "optimizer.step_epochs=[5,8]", "optimizer.step_factor=0.5"],
            {0: 1.0, 49: 1.0, 50: 0.5, 79: 0.5, 80: 0.25, 99: 0.25},
        ),
        (["optimizer.schedule=one_cycle"], {0: 1 / 25, 15: 0.52, 30: 1.0, 65: 0.5, 100: 1e-6}),
    ],
)
def test_the_other_schedules_go_where_they_say(settings: list[str], expected: dict[int, float]) -> None:
    config = load_config(overrides=["optimizer.learning_rate=1.0", "train.epochs=10", *settings])
    epochs = Epochs.of(config, num_examples=10 * config.train.global_batch_size)
    schedule = Schedule.of(config, num_train_steps=100, epochs=epochs)
    found = {step: float(schedule.at(tf.constant(step))) for step in expected}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_peak_is_scaled_with_the_global_batch(scaling: str, factor: float) -> None:
    config = load_config(
        overrides=[f"optimizer.scaling={scaling}", "train.global_batch_size=1024", "optimizer.learning_rate=0.1"]
    )
    assert Schedule.of(config, num_train_steps=10).peak == pytest.approx(0.1 * factor)


def test_a_warm_up_in_epochs_is_that_part_of_the_steps() -> None:
    config = load_config(overrides=["optimizer.warmup_epochs=0.5", "train.epochs=5"])
    epochs = Epochs.of(config, num_examples=200 * config.train.global_batch_size)
    assert Schedule.of(config, num_train_steps=1000, epochs=epochs).warmup_steps == 100


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.warmup_epochs=1", "optimizer.warmup_steps=5"], "set one of them to 0"),
        (["optimizer.warmup_epochs=3", "train.epochs=2"], "longer than the run"),
        (["optimizer.schedule=one_cycle", "optimizer.warmup_steps=3"], "a warm-up of its own"),
        (["optimizer.schedule=step"], "needs the epochs"),
        (["optimizer.step_epochs=[3]"], "the others have none"),
        (["optimizer.schedule=step", "optimizer.step_epochs=[12]"], "the run ends with epoch 10"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.of(load_config(overrides=overrides), num_train_steps=100)
