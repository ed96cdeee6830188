"""Which example comes next: the same for any number of workers and any start, each example once an epoch."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trainer.data.order import ExampleOrder, Purpose, stateless_seed
from trainer.distribute.topology import BatchDivision


def examples(order: ExampleOrder, positions: np.ndarray) -> np.ndarray:
    return order.examples_at(tf.constant(positions, tf.int64)).numpy()


@settings(deadline=None, max_examples=60)
@given(num_examples=st.integers(1, 3000), seed=st.integers(0, 2**31), epoch=st.integers(0, 10_000))
def test_every_example_comes_exactly_once_an_epoch(num_examples: int, seed: int, epoch: int) -> None:
    positions = epoch * num_examples + np.arange(num_examples)
    assert sorted(examples(ExampleOrder(num_examples, seed), positions)) == list(range(num_examples))


@settings(deadline=None, max_examples=60)
@given(
    num_examples=st.integers(1, 500),
    batch=st.integers(16, 100),
    seed=st.integers(0, 1000),
    start=st.integers(0, 40),
    num_workers=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_a_batch_is_the_same_from_any_start_on_any_number_of_workers(
    num_examples: int, batch: int, seed: int, start: int, num_workers: int
) -> None:
    order, division = ExampleOrder(num_examples, seed), BatchDivision(batch, num_workers)
    whole = examples(order, np.arange((start + 1) * batch))[start * batch :]
    slices = [division.slice_of(worker) for worker in range(num_workers)]
    parts = [examples(order, start * batch + np.arange(*bounds)) for bounds in slices]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@settings(deadline=None)
@given(batch=st.integers(1, 5000), num_replicas=st.integers(1, 64))
def test_slices_cover_the_batch_in_whole_pairs_and_differ_by_at_most_one(batch: int, num_replicas: int) -> None:
    division = BatchDivision(batch, num_replicas)
    slices = [division.slice_of(r) for r in range(num_replicas)]
    assert [i for start, stop in slices for i in range(start, stop)] == list(range(batch))
    pairs = [(stop + 1) // 2 - start // 2 for start, stop in slices]
    assert max(pairs) - min(pairs) <= 1
    assert all(start % 2 == 0 for start, stop in slices if stop > start)
    assert division.per_replica_batch_size == max(stop - start for start, stop in slices)


def test_epochs_and_seeds_have_different_orders() -> None:
    first, second = (examples(ExampleOrder(200, 0), epoch * 200 + np.arange(200)) for epoch in (0, 1))
    other_seed = examples(ExampleOrder(200, 1), np.arange(200))
    assert (first == second).mean() < 0.1
    assert (first == other_seed).mean() < 0.1


@pytest.mark.parametrize("num_examples", [1437, 10_000, 60_000])
def test_the_classes_in_a_batch_are_what_chance_gives_on_class_sorted_data(num_examples: int) -> None:
    batch, num_classes, num_pairs = 60, 10, 1000
    label_of = np.arange(num_examples) * num_classes // num_examples
    expected = np.bincount(label_of) / num_examples * batch
    statistics = []
    for i in range(num_pairs):
        start = i * num_examples + i * batch % (num_examples - batch)  # epoch i, a batch somewhere in it
        counts = np.bincount(
            label_of[examples(ExampleOrder(num_examples, i % 7), start + np.arange(batch))], minlength=10
        )
        statistics.append(((counts - expected) ** 2 / expected).sum())
    # Under chance the statistic is close to chi-square with 9 degrees of freedom: mean 9, 0.1% above 27.9.
    assert np.mean(statistics) == pytest.approx(num_classes - 1, rel=0.1)
    assert np.mean(np.array(statistics) > stats.chi2.ppf(0.999, num_classes - 1)) < 0.01


def test_a_stateless_seed_differs_by_seed_epoch_example_and_purpose() -> None:
    keys = {
        tuple(
            stateless_seed(seed, tf.constant(epoch, tf.int64), tf.constant(example, tf.int64), purpose).numpy().tolist()
        )
        for seed in (0, 1)
        for epoch in (0, 1, 5)
        for example in (0, 1, 60_000)
        for purpose in Purpose
    }
    assert len(keys) == 2 * 3 * 3 * len(Purpose)
