"""Mixup and CutMix: who is mixed with whom, by how much, and what becomes of the targets."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trainer.data.augmentation.mixing import NUM_UNIFORMS, choose_mixes, mix_pairs
from trainer.distribute.topology import BatchDivision

SIZE_PX = 20


def draw_mixes(num: int, mixup_alpha: float, cutmix_alpha: float, seed: int = 0) -> np.ndarray:
    uniforms = np.random.default_rng(seed).random([num, NUM_UNIFORMS], np.float32)
    return choose_mixes(
        tf.constant(uniforms), mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, image_size_px=SIZE_PX
    ).numpy()


def make_images(num: int) -> np.ndarray:
    """Image i is all of value i: what part of a mix it is can be read off the pixels."""
    return np.broadcast_to(np.arange(num, dtype=np.float32)[:, None, None, None], [num, SIZE_PX, SIZE_PX, 3])


def mix(mixes: np.ndarray, positions: np.ndarray, values: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mixes images of one value each, and targets of one class for each value."""
    values = positions if values is None else values
    images = make_images(int(values.max()) + 1)[values]
    targets = np.eye(int(values.max()) + 1, dtype=np.float32)[values]
    mixed = mix_pairs(*(tf.constant(t) for t in (images, targets, mixes, positions.astype(np.int64))))
    return mixed[0].numpy(), mixed[1].numpy()


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_mixup_weights_are_those_of_the_larger_part_of_a_beta_distribution(alpha: float) -> None:
    weights = draw_mixes(20_000, alpha, 0)[:, 0]
    beta = stats.beta(alpha, alpha)

    def larger_part(x: np.ndarray) -> np.ndarray:
        return np.where(x < 0.5, 0.0, beta.cdf(x) - beta.cdf(1 - x))

    # Weights are rounded to 1/4096, which is all but 1 for most of Beta(0.1, 0.1): compared where that is no matter.
    for point in (0.5, 0.6, 0.75, 0.9, 0.99):
        edge = point + 0.5 / 4096
        assert (weights <= edge).mean() == pytest.approx(larger_part(np.array(edge)), abs=0.015)
    assert weights.min() >= 0.5 and weights.max() <= 1


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_cutmix_leaves_the_share_that_its_beta_distribution_says_where_no_border_cuts(alpha: float) -> None:
    size = 512
    uniforms = np.full([2000, NUM_UNIFORMS], 0.5, np.float32)
    uniforms[:, 1] = (np.arange(2000) + 0.5) / 2000
    mixes = choose_mixes(tf.constant(uniforms), mixup_alpha=0, cutmix_alpha=alpha, image_size_px=size).numpy()
    top, left, bottom, right = mixes[:, 1:5].T
    np.testing.assert_array_equal(bottom - top, right - left)
    assert (top + bottom == size).all() and (left + right == size).all()
    assert stats.kstest(mixes[:, 5], stats.beta(alpha, alpha).cdf).statistic < 0.01


def test_a_cutmix_rectangle_is_anywhere_and_cut_off_at_the_border() -> None:
    top, left, bottom, right = draw_mixes(20_000, 0, 1.0)[:, 1:5].T
    assert min(top.min(), left.min()) == 0 and max(bottom.max(), right.max()) == SIZE_PX
    for low, high in ((top, bottom), (left, right)):
        is_cut = (low == 0) ^ (high == SIZE_PX)
        center = ((low + high) / 2 / SIZE_PX)[~is_cut & (low > 0)]
        assert np.mean(is_cut) > 0.3
        assert center.mean() == pytest.approx(0.5, abs=0.02)


def test_where_both_are_on_half_of_the_pairs_get_each() -> None:
    mixes = draw_mixes(20_000, 0.8, 1.0)
    is_cutmix = mixes[:, 0] == 1
    assert is_cutmix.mean() == pytest.approx(0.5, abs=0.02)
    assert (mixes[~is_cutmix, 1:5] == 0).all()
    np.testing.assert_array_equal(mixes[~is_cutmix, 0], mixes[~is_cutmix, 5])


@pytest.mark.parametrize(("mixup_alpha", "cutmix_alpha"), [(0.8, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_targets_are_mixed_by_the_share_of_the_pixels(mixup_alpha: float, cutmix_alpha: float) -> None:
    num = 64
    mixes = draw_mixes(num, mixup_alpha, cutmix_alpha)
    images, targets = mix(mixes, np.arange(num))
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    for i in range(num):
        partner = i ^ 1
        assert set(np.flatnonzero(targets[i])) <= {i, partner}
        # The mean of the pixels is that of the two values, weighted by their shares.
        shown = (images[i].mean(dtype=np.float64) - partner) / (i - partner)
        assert targets[i, i] == pytest.approx(shown, abs=1e-5)
        if cutmix_alpha and not mixup_alpha:
            assert set(np.unique(images[i])) <= {i, partner}
            assert targets[i, i] == pytest.approx((images[i, :, :, 0] == i).mean(), abs=1e-6)


def test_both_of_a_pair_get_the_mix_that_the_first_drew() -> None:
    mixes = draw_mixes(8, 0, 1.0)
    images, _ = mix(mixes, np.arange(8))
    for i in range(0, 8, 2):
        top, left, bottom, right = mixes[i, 1:5].astype(int)
        for row in (i, i + 1):
            is_partner = np.zeros([SIZE_PX, SIZE_PX], bool)
            is_partner[top:bottom, left:right] = True
            np.testing.assert_array_equal(images[row, :, :, 0] == row ^ 1, is_partner)


def test_the_last_of_an_odd_batch_stays_as_it_is() -> None:
    images, targets = mix(draw_mixes(5, 0, 1.0), np.arange(5))
    assert (images[4] == 4).all() and targets[4, 4] == 1
    assert (images[2] != 2).any()


def test_rows_that_do_not_follow_one_another_in_the_stream_are_no_pair() -> None:
    positions = np.array([10, 11, 12, 10, 11, 12])  # a slice of three, filled up to six
    images, targets = mix(draw_mixes(6, 0, 1.0, seed=3), positions, np.arange(6))
    assert [(images[i] == i).all() for i in range(6)] == [False, False, True, True, False, False]
    assert [targets[i, i] == 1 for i in range(6)] == [False, False, True, True, False, False]


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(2, 40),
    num_replicas=st.integers(1, 8),
    start=st.integers(0, 1000),
    seed=st.integers(0, 100),
)
def test_mixes_are_the_same_on_any_number_of_replicas(batch: int, num_replicas: int, start: int, seed: int) -> None:
    if (batch + 1) // 2 < num_replicas:
        return
    positions = start + np.arange(batch)
    mixes = draw_mixes(batch, 0.5, 1.0, seed)
    whole = mix(mixes, positions, np.arange(batch))
    division = BatchDivision(batch, num_replicas)
    for replica in range(num_replicas):
        first, last = division.slice_of(replica)
        rows = first + np.arange(division.per_replica_batch_size) % (last - first)
        images, targets = mix_pairs(
            *(
                tf.constant(t)
                for t in (
                    make_images(batch)[rows],
                    np.eye(batch, dtype=np.float32)[rows],
                    mixes[rows],
                    positions[rows].astype(np.int64),
                )
            )
        )
        np.testing.assert_array_equal(images.numpy()[: last - first], whole[0][first:last])
        np.testing.assert_array_equal(targets.numpy()[: last - first], whole[1][first:last])


def test_without_mixing_the_share_is_one_and_the_rectangle_empty() -> None:
    uniforms = tf.constant([[0.9, 1 - 2.0**-24, 0.3, 0.3], [0.1, 0.0, 0.3, 0.3]])
    mixes = choose_mixes(uniforms, mixup_alpha=0.1, cutmix_alpha=1.0, image_size_px=SIZE_PX).numpy()
    np.testing.assert_allclose(mixes[:, 0], 1, atol=1e-3)
    np.testing.assert_allclose(mixes[:, 5], 1, atol=1e-3)
