"""Class-balanced and weighted sampling: exact shares in every epoch, and in every pass of a class."""

import fractions
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampling.order import Draws, ExampleOrder, quantize_weights
from trainer.errors import DataError

MAX_FLOAT, MIN_FLOAT = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_normal)


def draw(order: ExampleOrder, num_epochs: int) -> Draws:
    positions = tf.range(num_epochs * order.num_examples, dtype=tf.int64)
    return Draws(*(values.numpy() for values in order.draw(positions)))


def balanced(sizes: list[int], seed: int = 0) -> tuple[ExampleOrder, np.ndarray]:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    order = ExampleOrder.of(sampling="class_balanced", num_examples=len(labels), seed=seed, labels=labels)
    return order, labels


def weighted(weights: np.ndarray, seed: int = 0) -> ExampleOrder:
    weights = weights.astype(np.float32)
    return ExampleOrder.of(sampling="weighted", num_examples=len(weights), seed=seed, weights=weights)


sizes_of_classes = st.lists(st.integers(1, 400), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(sizes=sizes_of_classes, seed=st.integers(0, 999), num_epochs=st.integers(1, 4))
def test_after_any_epoch_two_classes_differ_by_at_most_one_draw(sizes: list[int], seed: int, num_epochs: int) -> None:
    order, labels = balanced(sizes, seed)
    counts = np.bincount(labels[draw(order, num_epochs).examples], minlength=len(sizes))
    assert counts.max() - counts.min() <= 1


@settings(deadline=None, max_examples=50)
@given(sizes=sizes_of_classes, seed=st.integers(0, 999))
def test_each_pass_of_a_class_has_each_of_its_examples_once(sizes: list[int], seed: int) -> None:
    order, labels = balanced(sizes, seed)
    examples, visits = draw(order, 4)
    for label, size in enumerate(sizes):
        passes = visits[labels[examples] == label]
        num_draws = len(passes)
        # Passes come complete up to the last; within one, no example twice (the visit tells draws apart).
        assert np.bincount(passes, minlength=1)[: num_draws // size].tolist() == [size] * (num_draws // size)
    assert len(set(zip(examples, visits, strict=True))) == len(examples)


def test_each_pass_of_a_class_goes_through_its_examples_in_another_order() -> None:
    order, labels = balanced([100, 900])
    examples, visits = (values.reshape(2, 1000) for values in draw(order, 2))
    # Of 900 examples, the first epoch draws 500, and the second the other 400 and 100 of the next pass.
    before, after = examples[0][labels[examples[0]] == 1], examples[1][(labels[examples[1]] == 1) & (visits[1] == 1)]
    assert (len(before), len(after)) == (500, 100)
    assert 0.3 < np.isin(after, before).mean() < 0.8


def test_classes_of_one_size_go_through_their_examples_in_different_orders() -> None:
    order, labels = balanced([300, 300, 600])
    examples, visits = draw(order, 1)
    # Each class is drawn 400 times: a whole pass and 100 of the next.
    places = [
        np.searchsorted(np.flatnonzero(labels == label), examples[(labels[examples] == label) & (visits == 1)])
        for label in (0, 1)
    ]
    assert [len(found) for found in places] == [100, 100]
    assert np.isin(*places).mean() < 0.6


def test_which_classes_stand_side_by_side_is_left_to_chance() -> None:
    """Partners of mixup are neighbours: with classes dealt in turn they would always be the same ones."""
    order, labels = balanced([100] * 4)
    pairs = labels[draw(order, 10).examples].reshape(-1, 2)
    counts = np.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
    assert counts.min() > 0.7 * len(pairs) / 16


def test_examples_of_several_labels_cannot_be_balanced_by_class() -> None:
    labels = np.array([0, 1, -1], np.int32)
    with pytest.raises(DataError, match="training image 2 has several labels; use"):
        ExampleOrder.of(sampling="class_balanced", num_examples=3, seed=0, labels=labels)


def test_a_class_without_examples_is_named() -> None:
    labels = np.array([0, 0, 2], np.int32)
    with pytest.raises(DataError, match=r"'dog' has no training images; use .*: trainer prepare .* --exclude dog"):
        ExampleOrder.of(
            sampling="class_balanced", num_examples=3, seed=0, labels=labels, class_names=["cat", "dog", "emu"]
        )


ratios = st.one_of(
    st.floats(2**-10, 2**10, width=32, allow_subnormal=False),
    st.integers(1, 1000).map(float),
    st.sampled_from([MIN_FLOAT, 1e-30, 1.0, 1e30, MAX_FLOAT]),
)


@settings(deadline=None, max_examples=80)
@given(weights=st.lists(ratios, min_size=1, max_size=300), seed=st.integers(0, 999))
def test_in_every_epoch_an_example_gets_its_share_rounded_down_or_up(weights: list[float], seed: int) -> None:
    values = np.array(weights, np.float32)
    examples = draw(weighted(values, seed), 5).examples.reshape(5, -1)
    parts = [int(part) for part in quantize_weights(values)]
    shares = [fractions.Fraction(len(parts) * part, sum(parts)) for part in parts]
    for epoch in examples:
        for count, share in zip(np.bincount(epoch, minlength=len(parts)), shares, strict=True):
            assert math.floor(share) <= count <= math.ceil(share)


@settings(deadline=None, max_examples=80)
@given(weights=st.lists(ratios, min_size=1, max_size=300))
def test_weights_become_whole_parts_in_proportion(weights: list[float]) -> None:
    values = np.array(weights, np.float32)
    parts = quantize_weights(values)
    total = int(parts.sum())
    assert parts.min() >= 1
    # What the arithmetic of the order is made for.
    assert len(parts) * total < 2**63
    exact = [fractions.Fraction(float(value)) for value in values]
    for part, weight in zip(parts, exact, strict=True):
        assert abs(fractions.Fraction(int(part), total) - weight / sum(exact)) <= fractions.Fraction(len(parts), 2**46)


@given(weights=st.lists(st.integers(1, 2**20), min_size=1, max_size=200))
def test_whole_numbers_keep_their_proportion_exactly(weights: list[int]) -> None:
    parts = quantize_weights(np.array(weights, np.float32))
    assert [int(part) * weights[0] for part in parts] == [weight * int(parts[0]) for weight in weights]


def test_equal_weights_are_uniform_sampling() -> None:
    examples = draw(weighted(np.full(777, 0.1)), 3).examples.reshape(3, 777)
    for epoch in examples:
        assert sorted(epoch) == list(range(777))


@pytest.mark.parametrize("seed", range(3))
def test_over_the_epochs_the_draws_add_up_to_the_shares(seed: int) -> None:
    weights = np.random.default_rng(seed).gamma(0.3, size=200).astype(np.float32) + np.float32(1e-4)
    num_epochs = 500
    examples = draw(weighted(weights, seed), num_epochs).examples.reshape(num_epochs, 200)
    counts = np.cumsum([np.bincount(epoch, minlength=200) for epoch in examples], axis=0)
    shares = 200 * weights.astype(np.float64) / weights.astype(np.float64).sum()
    # Points placed afresh in each epoch would be off by about sqrt(num_epochs) / 2 = 11.
    assert np.abs(counts - shares * np.arange(1, num_epochs + 1)[:, np.newaxis]).max() < 4


def test_the_shares_of_a_million_examples_are_exact_too() -> None:
    weights = np.random.default_rng(0).gamma(0.3, size=2**20).astype(np.float32) + np.float32(1e-6)
    counts = np.bincount(draw(weighted(weights), 1).examples, minlength=2**20)
    parts = quantize_weights(weights)
    total = int(parts.sum())
    assert 2**20 * total < 2**63  # what the arithmetic of the order, and of this test, is made for
    shares = 2**20 * parts
    assert (counts >= shares // total).all()
    assert (counts <= -(-shares // total)).all()


def test_draws_of_one_example_are_spread_over_the_epoch() -> None:
    weights = np.ones(1000)
    weights[0] = 200
    (places,) = np.nonzero(draw(weighted(weights), 1).examples == 0)
    assert len(places) in (166, 167)  # 1000 * 200 / 1199
    assert 300 < np.mean(places) < 700
    assert np.bincount(places // 250, minlength=4).min() > 20


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_cannot_be_sampled_by_is_named(weight: float) -> None:
    with pytest.raises(DataError, match=f"the weight of training image 1 is {weight}"):
        weighted(np.array([1, weight, 1]))
