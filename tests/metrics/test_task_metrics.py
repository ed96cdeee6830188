"""Multi-label and binary evaluations against scikit-learn, and with metrics that a wrong threshold would fail."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings

from tests.metrics.score_cases import binary_splits, multi_label_splits, names, single_label_splits, skewed_multi_label
from trainer.errors import DataError
from trainer.metrics.evaluation import Evaluation, load_arrays, save_arrays
from trainer.metrics.scores import log_softmax, mean_loss, sigmoid, softmax
from trainer.metrics.summary import summarize, training_metrics, tune


def evaluate(labels, logits, task, **options) -> Evaluation:
    options = {"split": "test", "global_step": 7, "num_resamples": 0} | options
    return summarize(labels, logits, names(logits.shape[1]), task=task, **options)


@settings(deadline=None, max_examples=40)
@given(multi_label_splits())
def test_multi_label_agrees_with_scikit_learn(split):
    labels, logits = split
    evaluation = evaluate(labels, logits, "multi_label")
    predicted = (sigmoid(logits) >= 0.5).astype(int)
    assert evaluation.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    (at,) = evaluation.at_thresholds
    assert at.hamming_loss == pytest.approx(sklearn.metrics.hamming_loss(labels, predicted))
    assert at.micro_f1 == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="micro", zero_division=0))
    f1 = sklearn.metrics.f1_score(labels, predicted, average=None, zero_division=0)
    assert [c.f1 for c in evaluation.classes] == pytest.approx(list(f1))
    occurs = labels.any(axis=0) | predicted.any(axis=0)
    assert evaluation.macro.f1 == pytest.approx(f1[occurs].mean() if occurs.any() else 0)
    for k, of_class in enumerate(evaluation.classes):
        assert of_class.support == labels[:, k].sum() and of_class.threshold == 0.5
        if labels[:, k].any():
            expected = sklearn.metrics.average_precision_score(labels[:, k], logits[:, k])
            assert of_class.average_precision == pytest.approx(expected)
        else:
            assert of_class.average_precision is None
    known = [c.average_precision for c in evaluation.classes if c.average_precision is not None]
    assert evaluation.ranking.average_precision == (pytest.approx(np.mean(known)) if known else None)
    assert evaluation.confusion_matrix is None and evaluation.top5_accuracy is None
    expected = sklearn.metrics.log_loss(labels.ravel(), sigmoid(logits).ravel(), labels=[0, 1])
    assert evaluation.loss == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(binary_splits())
def test_binary_is_about_the_positive_class(split):
    labels, logits = split
    evaluation = evaluate(labels, logits, "binary")
    logit = logits[:, 1]
    if 0 < labels.sum() < len(labels):
        assert evaluation.ranking.roc_auc == pytest.approx(sklearn.metrics.roc_auc_score(labels, logit), abs=1e-9)
        expected = sklearn.metrics.average_precision_score(labels, logit)
        assert evaluation.ranking.average_precision == pytest.approx(expected, abs=1e-9)
    else:
        assert evaluation.ranking.roc_auc is None
    (at,) = evaluation.at_thresholds
    predicted = sigmoid(logit) >= 0.5
    assert at.f1 == pytest.approx(sklearn.metrics.f1_score(labels, predicted, zero_division=0))
    assert at.recall == pytest.approx(sklearn.metrics.recall_score(labels, predicted, zero_division=0))
    assert at.accuracy == pytest.approx((predicted == labels).mean())
    expected = sklearn.metrics.log_loss(labels, sigmoid(logit), labels=[0, 1])
    assert evaluation.loss == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(single_label_splits())
def test_the_areas_of_a_single_label_are_one_class_against_the_others(split):
    labels, logits = split
    evaluation = evaluate(labels, logits, "single_label")
    scores = log_softmax(logits)
    assert np.exp(scores) == pytest.approx(softmax(logits))
    for k, of_class in enumerate(evaluation.classes):
        if 0 < (labels == k).sum() < len(labels):
            assert of_class.roc_auc == pytest.approx(sklearn.metrics.roc_auc_score(labels == k, scores[:, k]))
        else:
            assert of_class.roc_auc is None
    known = [c.roc_auc for c in evaluation.classes if c.roc_auc is not None]
    assert evaluation.ranking.roc_auc == (pytest.approx(np.mean(known)) if known else None)


def test_areas_tell_probabilities_apart_that_round_to_one():
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[90, 0], [80, 0], [70, 0], [60, 0]], np.float32)
    assert (softmax(logits)[:, 0] == 1).all()
    assert evaluate(labels, logits, "binary").ranking.roc_auc == 1.0


def test_thresholds_of_the_validation_split_raise_f1_on_the_test_split():
    validation, test = skewed_multi_label(2000, seed=0), skewed_multi_label(2000, seed=1)
    tuning = tune(*validation, task="multi_label", global_step=7)
    evaluation = evaluate(*test, "multi_label", tuning=tuning)
    half, tuned = evaluation.at_thresholds
    assert half.f1 < 0.7 < 0.85 < tuned.f1, "at one half, classes whose logits are too low are hardly predicted"
    assert tuned.thresholds == tuning.thresholds and half.thresholds == [0.5] * 3
    assert tuning.thresholds[0] > tuning.thresholds[1] > tuning.thresholds[2]
    # What is said of classes and examples is said at the tuned thresholds.
    assert [c.threshold for c in evaluation.classes] == tuning.thresholds
    assert evaluation.macro.f1 == pytest.approx(tuned.f1) and evaluation.accuracy == tuned.accuracy > half.accuracy


def test_a_swapped_threshold_is_seen():
    validation, test = skewed_multi_label(2000, seed=0), skewed_multi_label(2000, seed=1)
    tuning = tune(*validation, task="multi_label", global_step=7)
    swapped = tuning.model_copy(update={"thresholds": tuning.thresholds[::-1]})
    right, wrong = (evaluate(*test, "multi_label", tuning=t).macro.f1 for t in (tuning, swapped))
    assert wrong < right - 0.1


def test_the_threshold_of_a_rare_positive_class_is_tuned():
    labels, logits = skewed_multi_label(2000, seed=0)
    two = np.stack([np.zeros(2000, np.float32), logits[:, 2]], axis=1)
    tuning = tune(labels[:, 2], two, task="binary", global_step=7)
    labels, logits = skewed_multi_label(2000, seed=1)
    two = np.stack([np.zeros(2000, np.float32), logits[:, 2]], axis=1)
    half, tuned = evaluate(labels[:, 2], two, "binary", tuning=tuning).at_thresholds
    assert len(tuned.thresholds) == 1 and tuned.thresholds[0] < 0.3
    assert half.recall < 0.1 and tuned.f1 > 0.85
    # The accuracy of the evaluation stays that of the more probable class.
    assert evaluate(labels[:, 2], two, "binary", tuning=tuning).accuracy == half.accuracy


def test_labels_other_than_0_and_1_are_an_error_for_several_labels():
    with pytest.raises(DataError, match="example 1 of the split 'test' has label 2, expected 0 to 1"):
        evaluate(np.array([[0, 1], [0, 2]]), np.zeros([2, 2], np.float32), "multi_label")


def test_evaluations_of_several_labels_are_saved_and_loaded(tmp_path):
    labels, logits = skewed_multi_label(50, seed=0)
    tuning = tune(labels, logits, task="multi_label", global_step=7)
    evaluation = evaluate(labels, logits, "multi_label", tuning=tuning, num_resamples=50)
    save_arrays(tmp_path, split="test", global_step=7, labels=labels, logits=logits)
    evaluation.save(tmp_path)
    assert Evaluation.load(tmp_path, "test") == evaluation
    assert (load_arrays(tmp_path, evaluation)[0] == labels).all()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("single_label", {"accuracy", "loss", "macro_f1"}),
        ("binary", {"accuracy", "loss", "macro_f1", "roc_auc", "average_precision"}),
        ("multi_label", {"accuracy", "loss", "macro_f1", "average_precision"}),
    ],
)
def test_what_is_logged_in_training_is_what_the_evaluation_says(task, expected):
    labels, logits = skewed_multi_label(200, seed=0)
    if task != "multi_label":
        labels, logits = labels[:, 0], np.stack([np.zeros(200, np.float32), logits[:, 0]], axis=1)
    logged = training_metrics(labels, logits, names(logits.shape[1]), task=task, split="validation", global_step=7)
    evaluation = evaluate(labels, logits, task)
    assert set(logged) == expected
    assert logged["loss"] == evaluation.loss == mean_loss(labels, logits, task)
    assert logged["accuracy"] == evaluation.accuracy
    assert logged.get("average_precision", evaluation.ranking.average_precision) == evaluation.ranking.average_precision
    assert logged.get("roc_auc", evaluation.ranking.roc_auc) == evaluation.ranking.roc_auc
    assert logged.get("macro_f1", evaluation.macro.f1) == evaluation.macro.f1
