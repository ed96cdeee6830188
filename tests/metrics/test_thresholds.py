import numpy as np
import sklearn.metrics
from hypothesis import given, settings

from tests.metrics.score_cases import multi_label_splits
from trainer.metrics.scores import sigmoid
from trainer.metrics.thresholds import tune_thresholds


@settings(deadline=None, max_examples=25)
@given(multi_label_splits())
def test_no_other_threshold_has_a_higher_f1(split):
    labels, logits = split
    thresholds, probabilities = tune_thresholds(labels, logits), sigmoid(logits)
    assert ((thresholds >= 0) & (thresholds <= 1)).all()
    for k, threshold in enumerate(thresholds):
        if not labels[:, k].any():
            assert threshold == 0.5
            continue

        def f1(value, k=k):
            return sklearn.metrics.f1_score(labels[:, k], probabilities[:, k] >= value, zero_division=0)

        # Every way to cut the list is one of these.
        assert f1(threshold) >= max(f1(value) for value in [0, *probabilities[:, k], 1]) - 1e-12


def test_the_threshold_lies_halfway_between_the_neighbours():
    logits = np.log(np.array([[0.1], [0.2], [0.6], [0.8]]) / np.array([[0.9], [0.8], [0.4], [0.2]]))
    thresholds = tune_thresholds(np.array([[0], [0], [1], [1]]), logits.astype(np.float32))
    assert np.allclose(thresholds, 0.4, atol=1e-6)


def test_equal_probabilities_are_not_parted():
    """Were the second example parted from the negatives of its own probability, F1 would seem to be 1."""
    labels = np.array([[1], [1], [0], [0], [0], [0], [0]])
    logits = np.array([[2], [0], [0], [0], [0], [0], [0]], np.float32)
    assert tune_thresholds(labels, logits)[0] > 0.5
