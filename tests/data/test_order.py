"""Which example comes next: the same for any number of workers and any start, each example once an epoch."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampling.order import Draws, ExampleOrder, Purpose, run_length_warning, stateless_seed
from trainer.data.sampling.permutation import make_keys, permute, random_below
from trainer.distribute.topology import BatchDivision
from trainer.errors import ConfigError

NUM_WORKERS = (1, 2, 3, 4, 8)


def draw(order: ExampleOrder, positions: np.ndarray) -> Draws:
    return Draws(*(values.numpy() for values in order.draw(tf.constant(positions, tf.int64))))


@st.composite
def orders(draw_from: st.DrawFn) -> ExampleOrder:
    """Any sampling of 1 to 400 examples."""
    num_examples, seed = draw_from(st.integers(1, 400)), draw_from(st.integers(0, 2**40))
    rng = np.random.default_rng(draw_from(st.integers(0, 1000)))
    sampling = draw_from(st.sampled_from(["uniform", "class_balanced", "weighted"]))
    run_length = min(draw_from(st.sampled_from([1, 2, 3, 8, 50])), num_examples) if sampling == "uniform" else 1
    _, labels = np.unique(rng.integers(0, 9, num_examples), return_inverse=True)
    weights = rng.gamma(0.5, size=num_examples).astype(np.float32) + np.float32(1e-3)
    return ExampleOrder.of(
        sampling=sampling,
        run_length=run_length,
        num_examples=num_examples,
        seed=seed,
        labels=labels.astype(np.int32),
        weights=weights,
    )


@settings(deadline=None, max_examples=60)
@given(
    num_examples=st.integers(1, 3000),
    run_length=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10_000),
)
def test_every_example_comes_exactly_once_an_epoch(num_examples: int, run_length: int, seed: int, epoch: int) -> None:
    order = ExampleOrder.of(num_examples=num_examples, seed=seed, run_length=min(run_length, num_examples))
    draws = draw(order, epoch * num_examples + np.arange(num_examples))
    assert sorted(draws.examples) == list(range(num_examples))
    assert set(draws.visits) == {epoch}


@settings(deadline=None, max_examples=40)
@given(order=orders(), batch=st.integers(16, 100), first_step=st.integers(0, 40))
def test_the_batches_of_three_epochs_are_the_same_on_any_number_of_workers_and_from_any_step(
    order: ExampleOrder, batch: int, first_step: int
) -> None:
    num_steps = -(-3 * order.num_examples // batch)
    whole = draw(order, np.arange(num_steps * batch))
    batches = whole.examples.reshape(num_steps, batch)
    first_step = min(first_step, num_steps - 1)
    for num_workers in NUM_WORKERS:
        division = BatchDivision(batch, num_workers)
        parts = []
        for worker in range(num_workers):
            starts = np.arange(first_step, num_steps)[:, np.newaxis] * batch
            positions = starts + np.arange(*division.slice_of(worker))
            parts.append(draw(order, positions.reshape(-1)).examples.reshape(positions.shape))
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), batches[first_step:])


@settings(deadline=None, max_examples=60)
@given(order=orders(), num_epochs=st.integers(1, 5))
def test_no_two_draws_of_an_example_have_the_same_visit(order: ExampleOrder, num_epochs: int) -> None:
    draws = draw(order, np.arange(num_epochs * order.num_examples))
    assert len(set(zip(*draws, strict=True))) == len(draws.examples)
    assert draws.visits.min() >= 0


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


@pytest.mark.parametrize("num_examples", [200, 1000, 60_000, 100_000])
def test_epochs_and_seeds_have_different_orders_however_far_apart(num_examples: int) -> None:
    def steps(seed: int, epoch: int) -> np.ndarray:
        """From one example to the next: two orders that are each other's rotation count as the same."""
        return np.diff(draw(ExampleOrder(num_examples, seed), epoch * num_examples + np.arange(100)).examples)

    base = steps(0, 0)
    # 2**8 and 2**16: what the kernel reads of its seeds for domains below 2**16 and 2**32.
    for far in (1, 2, 2**8, 2**16, 2**20):
        assert (steps(far, 0) == base).mean() < 0.1
        assert (steps(0, far) == base).mean() < 0.1


@settings(deadline=None, max_examples=60)
@given(run_length=st.integers(2, 32), factor=st.integers(2, 40), rest=st.integers(0, 31), seed=st.integers(0, 999))
def test_runs_of_neighbours_stay_together_and_start_where_the_run_length_divides(
    run_length: int, factor: int, rest: int, seed: int
) -> None:
    num_examples = run_length * factor + rest % run_length
    order = ExampleOrder.of(num_examples=num_examples, seed=seed, run_length=run_length)
    examples = draw(order, np.arange(3 * num_examples)).examples
    starts = np.arange(0, len(examples) - run_length + 1, run_length)
    in_one_epoch = starts // num_examples == (starts + run_length - 1) // num_examples
    runs = examples[starts[in_one_epoch, np.newaxis] + np.arange(run_length)]
    # Neighbours, on the ring.
    assert set(np.diff(runs, axis=1).reshape(-1) % num_examples) == {1}
    assert len(runs) * run_length > 3 * (num_examples - 2 * run_length)


def test_runs_are_shuffled_and_cut_elsewhere_in_each_epoch() -> None:
    order = ExampleOrder.of(num_examples=960, seed=0, run_length=16)
    first, second = draw(order, np.arange(2 * 960)).examples.reshape(2, 60, 16)
    assert (np.diff(first[:, 0]) % 960 == 16).mean() < 0.1
    assert first[0, 0] % 16 != second[0, 0] % 16


def test_a_run_length_that_fits_the_slices_is_not_warned_of() -> None:
    assert run_length_warning(16, BatchDivision(256, 4)) is None
    assert run_length_warning(1, BatchDivision(63, 5)) is None
    warning = run_length_warning(16, BatchDivision(96, 4))
    assert warning is not None
    assert "a divisor of 24, or a multiple of 64" in warning


@settings(deadline=None)
@given(run_length=st.integers(1, 64), num_replicas=st.integers(1, 16), factor=st.integers(1, 20))
def test_the_batch_that_the_warning_recommends_fits(run_length: int, num_replicas: int, factor: int) -> None:
    multiple = int(np.lcm(run_length, 2)) * num_replicas
    assert run_length_warning(run_length, BatchDivision(multiple * factor, num_replicas)) is None


def test_a_run_longer_than_the_split_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.run_length is 11, and there are 10 training images"):
        ExampleOrder.of(num_examples=10, seed=0, run_length=11)


@pytest.mark.parametrize("sampling", ["class_balanced", "weighted"])
def test_runs_of_examples_drawn_one_by_one_are_an_error(sampling: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.run_length is 2, but data\.sampling is {sampling}"):
        ExampleOrder.of(num_examples=10, seed=0, run_length=2, sampling=sampling)


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=6), seed=st.integers(0, 2**63))
def test_permutations_of_several_sizes_in_one_call_are_each_complete(sizes: list[int], seed: int) -> None:
    index = np.concatenate([np.arange(size) for size in sizes])
    which = np.repeat(np.arange(len(sizes)), sizes)
    found = permute(
        tf.constant(index),
        tf.gather(tf.constant(sizes, tf.int64), which),
        make_keys(seed, tf.constant(which)),
        min_size=min(sizes),
        max_size=max(sizes),
    ).numpy()
    for i, size in enumerate(sizes):
        assert sorted(found[which == i]) == list(range(size))


@given(words=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
def test_a_key_is_the_same_whether_its_words_are_known_in_the_graph_or_before(words: list[int]) -> None:
    assert make_keys(*words) == make_keys(*(tf.constant(word, tf.int64) for word in words))


@settings(deadline=None)
@given(bound=st.integers(1, 2**50))
def test_random_numbers_stay_below_their_bound_and_fill_it(bound: int) -> None:
    found = random_below(bound, make_keys(bound, tf.range(2000, dtype=tf.int64))).numpy()
    assert found.min() >= 0
    assert found.max() < bound
    assert found.mean() == pytest.approx((bound - 1) / 2, rel=0.1)


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
