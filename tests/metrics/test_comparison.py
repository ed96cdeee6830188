import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics.bootstrap import make_statistics
from trainer.metrics.comparison import holm_correction, mcnemar_p_value, paired_differences


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_the_p_value_is_the_sum_of_the_binomial_tails(pairs):
    first, second = np.array(pairs).T
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1)) / 2**n
    assert mcnemar_p_value(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar_p_value(second, first) == mcnemar_p_value(first, second)


def test_examples_that_both_get_right_or_wrong_do_not_count():
    first = np.array([True] * 10 + [False] * 2)
    second = np.array([False] * 10 + [True] * 2)
    agreed = np.array([True, False] * 500)
    p_value = mcnemar_p_value(first, second)
    assert p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar_p_value(np.append(first, agreed), np.append(second, agreed)) == p_value


def test_holm_corrects_in_the_order_of_the_p_values():
    assert holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_correction([0.6, 0.7]) == [1.0, 1.0]
    assert holm_correction([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_stepping_down_rejects(p_values):
    corrected = holm_correction(p_values)
    for level in (0.05, 0.2):
        rejected = set()
        for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[i] * (len(p_values) - rank) > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(corrected) if p <= level} == rejected
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(sorted(corrected)))


def two_models(num_examples: int):
    """The second gets what the first gets, and half of the rest; both err on the same hard examples."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, num_examples)
    hard = rng.random(num_examples)
    logits = []
    for share in (0.3, 0.15):
        given = np.where(hard < share, (labels + 1) % 3, labels)
        logits.append((3 * np.eye(3)[given] + 0.1 * rng.normal(size=[num_examples, 3])).astype(np.float32))
    return labels, logits


def test_paired_intervals_are_narrower_than_those_of_models_apart():
    labels, (first, second) = two_models(400)
    statistics = [make_statistics(labels, logits, "single_label") for logits in (first, second)]
    differences = paired_differences(*statistics, 400)
    assert set(differences) == {"accuracy", "macro_f1", "average_precision", "roc_auc"}
    accuracy = differences["accuracy"]
    expected = (second.argmax(axis=1) == labels).mean() - (first.argmax(axis=1) == labels).mean()
    assert accuracy.value == pytest.approx(expected)
    low, high = accuracy.interval
    # The share d of the examples that one alone gets right has the standard error sqrt(d (1 - d) / n).
    half = 1.96 * math.sqrt(expected * (1 - expected) / 400)
    assert low == pytest.approx(expected - half, abs=0.01) and high == pytest.approx(expected + half, abs=0.01)
    for name, difference in differences.items():
        assert difference.interval[0] < difference.value < difference.interval[1], name


def test_a_model_does_not_differ_from_itself():
    labels, (first, _) = two_models(100)
    statistics = make_statistics(labels, first, "single_label")
    for difference in paired_differences(statistics, statistics, 100, num_resamples=50).values():
        assert difference.value == 0 and difference.interval == (0, 0)
