import json
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainer.errors import DataError, RunError, TrainingError
from trainer.metrics.evaluation import Evaluation, load_arrays, save_arrays
from trainer.metrics.predictions import wilson_interval
from trainer.metrics.scores import softmax
from trainer.metrics.summary import summarize


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def evaluate(labels, logits) -> Evaluation:
    logits = np.asarray(logits, np.float32)
    return summarize(
        np.asarray(labels, np.int64), logits, names(logits.shape[1]), split="test", global_step=7, num_resamples=0
    )


@st.composite
def splits(draw):
    """Labels and logits of 1 to 40 examples of 2 to 9 classes; many logits are equal, as in a collapsed model."""
    num_examples, num_classes = draw(st.integers(1, 40)), draw(st.integers(2, 9))
    labels = draw(arrays.arrays(np.int64, num_examples, elements=st.integers(0, num_classes - 1)))
    logit = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-(2.0**100), 2.0**100, width=32))
    return labels, draw(arrays.arrays(np.float32, (num_examples, num_classes), elements=logit))


def test_three_examples_worked_by_hand():
    evaluation = evaluate([0, 1, 1], [[2, 0], [1, 0], [0, 3]])
    assert evaluation.num_examples == 3
    assert evaluation.accuracy == pytest.approx(2 / 3)
    assert evaluation.confusion_matrix == [[1, 0], [1, 1]]
    assert evaluation.top5_accuracy == 1.0
    losses = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1)), math.log(1 + math.exp(-3))]
    assert evaluation.loss == pytest.approx(sum(losses) / 3, rel=1e-12)
    first, second = evaluation.classes
    assert (first.precision, first.recall, first.support) == (0.5, 1.0, 1)
    assert (second.precision, second.recall, second.support) == (1.0, 0.5, 2)
    assert first.f1 == second.f1 == pytest.approx(2 / 3)
    assert evaluation.macro.precision == 0.75


@settings(deadline=None)
@given(splits())
def test_agrees_with_scikit_learn(split):
    labels, logits = split
    evaluation = evaluate(labels, logits)
    predicted = logits.argmax(axis=1)
    report = sklearn.metrics.classification_report(labels, predicted, output_dict=True, zero_division=0.0)
    assert evaluation.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert evaluation.macro.f1 == pytest.approx(report["macro avg"]["f1-score"])
    for index, of_class in enumerate(evaluation.classes):
        expected = report.get(str(index), {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        assert of_class.precision == pytest.approx(expected["precision"])
        assert of_class.recall == pytest.approx(expected["recall"])
        assert of_class.f1 == pytest.approx(expected["f1-score"])
        assert of_class.support == expected["support"]


@settings(deadline=None)
@given(splits())
def test_the_confusion_matrix_adds_up_to_every_other_count(split):
    labels, logits = split
    evaluation = evaluate(labels, logits)
    matrix = np.array(evaluation.confusion_matrix)
    assert matrix.sum() == evaluation.num_examples == len(labels)
    assert matrix.sum(axis=1).tolist() == [c.support for c in evaluation.classes]
    assert np.trace(matrix) == round(evaluation.accuracy * len(labels))
    low, high = evaluation.accuracy_interval
    assert 0 <= low <= evaluation.accuracy <= high <= 1
    assert evaluation.accuracy <= evaluation.top5_accuracy


@settings(deadline=None)
@given(splits(), st.randoms(use_true_random=False))
def test_the_order_of_the_examples_changes_nothing_to_the_last_bit(split, random):
    labels, logits = split
    order = list(range(len(labels)))
    random.shuffle(order)
    assert evaluate(labels[order], logits[order]) == evaluate(labels, logits)


def test_the_loss_is_that_of_float64_where_float32_would_round_it_away():
    logits = np.array([[20.0, 0.0]], np.float32)
    assert evaluate([0], logits).loss == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)
    assert evaluate([1], logits * 1e37).loss == pytest.approx(2e38, rel=1e-6)


def test_top_5_counts_places_and_breaks_ties_by_index_as_argmax_does():
    place = np.array([[9, 8, 7, 6, 5, 4, 3]], np.float32)
    assert evaluate([4], place).top5_accuracy == 1.0
    assert evaluate([5], place).top5_accuracy == 0.0
    equal = np.zeros([7, 7])
    evaluation = evaluate(range(7), equal)
    assert evaluation.accuracy == pytest.approx(1 / 7)
    assert evaluation.top5_accuracy == pytest.approx(5 / 7)


# From the closed form worked with 30 digits; 8 of 10 and 0 of 10 are in most textbooks as 0.490-0.943 and 0-0.278.
@pytest.mark.parametrize(
    ("num_correct", "num_examples", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (50, 100, 0.4038315, 0.5961685)],
)
def test_wilson_intervals_are_the_known_ones(num_correct, num_examples, low, high):
    assert wilson_interval(num_correct, num_examples) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_the_proportion_and_mirrors(counts):
    num_correct, num_examples = counts
    low, high = wilson_interval(num_correct, num_examples)
    assert 0 <= low <= num_correct / num_examples <= high <= 1
    assert wilson_interval(num_examples - num_correct, num_examples) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_softmax_adds_up_to_one_for_huge_logits():
    probabilities = softmax(np.array([[3e38, -3e38, 0], [0, 0, 0]], np.float32))
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    assert probabilities[1] == pytest.approx([1 / 3] * 3)


def test_an_empty_split_is_an_error():
    with pytest.raises(DataError, match="'test' holds no examples"):
        summarize(np.zeros(0, np.int64), np.zeros([0, 2], np.float32), names(2), split="test", global_step=1)


def test_non_finite_logits_are_counted():
    logits = np.zeros([5, 3], np.float32)
    logits[1, 2], logits[4, 0] = np.nan, np.inf
    with pytest.raises(TrainingError, match=r"2 of 5 examples .* at step 7 \(the first is example 1\)"):
        evaluate(np.zeros(5), logits)


def test_a_label_without_a_class_is_named():
    with pytest.raises(DataError, match="example 1 of the split 'test' has label 2, expected 0 to 1"):
        evaluate([0, 2], np.zeros([2, 2]))


def test_what_was_saved_is_loaded(tmp_path):
    labels, logits = np.array([0, 1, 1]), np.array([[2, 0], [1, 0], [0, 3]], np.float32)
    evaluation = evaluate(labels, logits)
    save_arrays(tmp_path / "evaluation", split="test", global_step=7, labels=labels, logits=logits)
    path = evaluation.save(tmp_path / "evaluation")
    assert Evaluation.load(tmp_path / "evaluation", "test") == evaluation
    loaded_labels, loaded_logits = load_arrays(tmp_path / "evaluation", evaluation)
    assert (loaded_labels == labels).all() and loaded_labels.dtype == np.int64
    assert (loaded_logits == logits).all() and loaded_logits.dtype == np.float32
    assert json.loads(path.read_text())["confusion_matrix"] == [[1, 0], [1, 1]]
    assert "    [1, 0],\n    [1, 1]\n  ]\n}\n" in path.read_text()


def test_a_split_that_was_not_evaluated_says_how_to(tmp_path):
    with pytest.raises(RunError, match=f"trainer evaluate {tmp_path} --split test"):
        Evaluation.load(tmp_path / "evaluation", "test")


def test_an_evaluation_of_another_version_is_refused(tmp_path):
    path = evaluate([0], [[1, 0]]).save(tmp_path)
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(RunError, match="schema version 2"):
        Evaluation.load(tmp_path, "test")


def test_arrays_of_another_evaluation_are_refused(tmp_path):
    labels, logits = np.array([0]), np.array([[1, 0]], np.float32)
    evaluation = evaluate(labels, logits)
    with pytest.raises(RunError, match=r"test\.npz is missing"):
        load_arrays(tmp_path, evaluation)
    save_arrays(tmp_path, split="test", global_step=8, labels=labels, logits=logits)
    with pytest.raises(RunError, match="of step 8, but"):
        load_arrays(tmp_path, evaluation)
    (tmp_path / "test.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(RunError, match="is not readable"):
        load_arrays(tmp_path, evaluation)


def test_arrays_with_pickled_objects_are_never_loaded(tmp_path):
    content = {"labels": np.array([{}], object), "logits": np.zeros([1, 2], np.float32), "global_step": np.int64(7)}
    np.savez(tmp_path / "test.npz", **content)
    with pytest.raises(RunError, match="is not readable"):
        load_arrays(tmp_path, evaluate([0], [[1, 0]]))
