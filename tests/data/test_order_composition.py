"""What batches hold by class on class-sorted data, over 1,000 (seed, epoch) pairs: what chance gives.

Each test asks how likely a deviation as large as the one found is by chance, and fails below `SIGNIFICANCE`. Seeds are
fixed, so that a test always finds the same; the level only says how the thresholds were chosen.
"""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from trainer.data.sampling.order import ExampleOrder

SIGNIFICANCE = 1e-4
NUM_CLASSES, BATCH = 10, 64
NUM_SEEDS, NUM_EPOCHS = 40, 25
SIZES = (1437, 1797, 5000, 10_000, 20_011, 60_000)


def class_counts(num_examples: int, run_length: int = 1, *, num_batches: int = 1) -> np.ndarray:
    """[pairs * num_batches, classes]: for each (seed, epoch), the classes of some batches of its epoch.

    Example i is of class i * NUM_CLASSES // num_examples: the classes lie one after the other.
    """
    found = []
    rng = np.random.default_rng(num_examples)
    for seed in range(NUM_SEEDS):
        order = ExampleOrder.of(num_examples=num_examples, seed=seed, run_length=run_length)
        first = rng.integers(0, (num_examples - BATCH) // BATCH, (NUM_EPOCHS, num_batches)) * BATCH
        first += np.arange(NUM_EPOCHS)[:, np.newaxis] * num_examples
        positions = (first[:, :, np.newaxis] + np.arange(BATCH)).reshape(-1)
        examples = order.draw(tf.constant(positions, tf.int64)).examples.numpy().reshape(-1, BATCH)
        found.append(np.apply_along_axis(np.bincount, 1, examples * NUM_CLASSES // num_examples, minlength=NUM_CLASSES))
    return np.concatenate(found)


def chi_squares(counts: np.ndarray, num_examples: int) -> np.ndarray:
    """Pearson's statistic of each batch, scaled for drawing without replacement: NUM_CLASSES - 1 on average."""
    sizes = np.bincount(np.arange(num_examples) * NUM_CLASSES // num_examples)
    expected = BATCH * sizes / num_examples
    without_replacement = (num_examples - 1) / (num_examples - BATCH)
    return ((counts - expected) ** 2 / expected).sum(axis=1) * without_replacement


@pytest.mark.parametrize("num_examples", SIZES)
def test_the_classes_in_a_batch_scatter_as_chance_has_it(num_examples: int) -> None:
    counts = class_counts(num_examples)
    degrees = len(counts) * (NUM_CLASSES - 1)
    total = chi_squares(counts, num_examples).sum()
    # Too even is as wrong as too uneven.
    assert SIGNIFICANCE < stats.chi2.cdf(total, degrees) < 1 - SIGNIFICANCE


@pytest.mark.parametrize("num_examples", SIZES)
def test_the_number_of_one_class_in_a_batch_is_hypergeometric(num_examples: int) -> None:
    counts = class_counts(num_examples)
    label = np.arange(len(counts)) % NUM_CLASSES  # one class a batch: those of one batch depend on each other
    found = np.bincount(counts[np.arange(len(counts)), label], minlength=BATCH + 1)
    sizes = np.bincount(np.arange(num_examples) * NUM_CLASSES // num_examples)
    pmf = np.mean([stats.hypergeom(num_examples, size, BATCH).pmf(np.arange(BATCH + 1)) for size in sizes], axis=0)
    expected = pmf * len(counts)
    # What is expected fewer than 5 times is counted together, below and above.
    low, high = np.flatnonzero(expected >= 5)[[0, -1]]

    def binned(values: np.ndarray) -> np.ndarray:
        return np.concatenate([[values[: low + 1].sum()], values[low + 1 : high], [values[high:].sum()]])

    assert stats.chisquare(binned(found), binned(expected), sum_check=False).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("num_examples", SIZES)
def test_no_batch_is_of_few_classes(num_examples: int) -> None:
    """The tail: among 10,000 batches, none that chance would not give once in 100 such tests."""
    worst = chi_squares(class_counts(num_examples, num_batches=10), num_examples).max()
    assert worst < stats.chi2.ppf(1 - 0.01 / 10_000, NUM_CLASSES - 1) + 6  # the tail is heavier than chi-square's


def test_runs_scatter_as_batches_of_as_many_draws_as_there_are_runs() -> None:
    """The price of the run mode, on records that are sorted by class: a run of 16 counts as one draw."""
    run_length, num_examples = 16, 60_000
    statistics = chi_squares(class_counts(num_examples, run_length), num_examples)
    assert statistics.mean() == pytest.approx(run_length * (NUM_CLASSES - 1), rel=0.1)


def test_runs_cost_nothing_in_a_single_batch_where_the_records_are_shuffled() -> None:
    num_examples, run_length = 10_000, 16
    order_on_disk = np.random.default_rng(0).permutation(num_examples)
    statistics = []
    for seed in range(NUM_SEEDS):
        order = ExampleOrder.of(num_examples=num_examples, seed=seed, run_length=run_length)
        first = np.arange(NUM_EPOCHS)[:, np.newaxis] * num_examples + seed * BATCH
        positions = (first + np.arange(BATCH)).reshape(-1)
        examples = order_on_disk[order.draw(tf.constant(positions, tf.int64)).examples.numpy()]
        counts = np.apply_along_axis(
            np.bincount, 1, (examples * NUM_CLASSES // num_examples).reshape(-1, BATCH), minlength=NUM_CLASSES
        )
        statistics.append(chi_squares(counts, num_examples))
    assert np.mean(statistics) == pytest.approx(NUM_CLASSES - 1, rel=0.1)
