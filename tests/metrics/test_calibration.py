import numpy as np
import pytest
from hypothesis import given, settings

from tests.metrics.score_cases import multi_label_splits, names, single_label_splits
from trainer.metrics import scores
from trainer.metrics.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    confidences,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from trainer.metrics.evaluation import Evaluation, Tuning
from trainer.metrics.scores import mean_loss, sigmoid, softmax
from trainer.metrics.summary import summarize, tune


def error_by_hand(confidences, correct) -> float:
    total = 0.0
    for i in range(15):
        inside = [(p, c) for p, c in zip(confidences, correct, strict=True) if i / 15 < p <= (i + 1) / 15]
        if i == 0:
            inside += [(p, c) for p, c in zip(confidences, correct, strict=True) if p == 0]
        if inside:
            total += abs(sum(c for _, c in inside) - sum(p for p, _ in inside))
    return total / len(confidences)


@settings(deadline=None, max_examples=60)
@given(single_label_splits())
def test_the_error_is_that_of_the_definition(split):
    labels, logits = split
    bins = reliability(confidences(labels, logits, "single_label"))
    probabilities = softmax(logits)
    by_hand = error_by_hand(probabilities.max(axis=1), logits.argmax(axis=1) == labels)
    assert expected_calibration_error(bins) == pytest.approx(by_hand, abs=1e-9)
    assert len(bins) == 15 and sum(b.count for b in bins) == len(labels)


@settings(deadline=None, max_examples=30)
@given(multi_label_splits())
def test_with_several_labels_every_probability_counts(split):
    labels, logits = split
    bins = reliability(confidences(labels, logits, "multi_label"))
    by_hand = error_by_hand(sigmoid(logits).ravel(), labels.ravel())
    assert expected_calibration_error(bins) == pytest.approx(by_hand, abs=1e-9)


def test_an_answer_on_an_edge_belongs_to_the_bin_below():
    edges = np.array([3 / 15, 1.0, 0.0])
    counts = [b.count for b in reliability([(edges, np.array([True, True, False]))])]
    assert [i for i, count in enumerate(counts) if count] == [0, 2, 14]


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_a_known_temperature_is_found_and_calibrates_another_split(task, temperature):
    rng = np.random.default_rng(0)
    honest = rng.normal(size=[6000, 4]) * 2
    if task == "single_label":
        labels = (softmax(honest).cumsum(axis=1) < rng.random([6000, 1])).sum(axis=1)
    else:
        labels = (rng.random([6000, 4]) < sigmoid(honest)).astype(np.int64)
    logits = (honest * temperature).astype(np.float32)
    tuning = tune(labels[:3000], logits[:3000], task=task, global_step=1)
    assert tuning.temperature == pytest.approx(temperature, rel=0.1)
    evaluation = summarize(
        labels[3000:], logits[3000:], names(4), task=task, split="test", global_step=1, tuning=tuning, num_resamples=0
    )
    calibration = evaluation.calibration
    assert calibration.ece > 0.06 and calibration.ece_with_temperature < 0.03
    assert calibration.loss_with_temperature < evaluation.loss
    assert sum(b.count for b in calibration.bins_with_temperature) == sum(b.count for b in calibration.bins)


@settings(deadline=None, max_examples=20)
@given(single_label_splits())
def test_no_other_temperature_has_a_lower_loss(split):
    labels, logits = split
    temperature = fit_temperature(labels, logits, "single_label")
    others = np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 25)
    losses = [mean_loss(labels, logits / other, "single_label") for other in others]
    if temperature is None:
        # The one end of the search or the other is no worse than all that lies between them.
        assert min(losses[0], losses[-1]) <= min(losses) + 1e-6
        return
    assert MIN_TEMPERATURE < temperature < MAX_TEMPERATURE
    assert mean_loss(labels, logits, "single_label", temperature) <= min(losses) + 1e-6


def always_right(logits):
    return logits.argmax(axis=1).astype(np.int64)


def knows_nothing(logits):
    return np.random.default_rng(1).integers(logits.shape[1], size=len(logits))


@pytest.mark.parametrize("scale", [0.001, 1.0, 40.0])
@pytest.mark.parametrize("label", [always_right, knows_nothing])
def test_the_end_of_the_search_is_no_temperature(label, scale):
    logits = (np.random.default_rng(0).normal(size=[400, 5]) * scale).astype(np.float32)
    if label is knows_nothing:
        # Sure of a class, and wrong more often than guessing: less sure is better without end.
        logits[np.arange(400), (knows_nothing(logits) + 1) % 5] += 3 * scale
    assert fit_temperature(label(logits), logits, "single_label") is None
    tuning = tune(label(logits), logits, task="single_label", global_step=1)
    assert tuning.temperature is None
    evaluation = summarize(label(logits), logits, names(5), split="test", global_step=1, tuning=tuning, num_resamples=0)
    assert evaluation.calibration.ece_with_temperature is None and not evaluation.calibration.bins_with_temperature
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_a_temperature_at_the_end_that_was_recorded_before_is_not_used():
    tuned = {"global_step": 1, "weights": "auto", "dataset_hash": None, "thresholds": None}
    assert Tuning(**tuned, temperature=99.9999).temperature is None
    assert Tuning(**tuned, temperature=0.0100001).temperature is None
    assert Tuning(**tuned, temperature=42.0).temperature == 42.0


@settings(deadline=None, max_examples=20)
@given(multi_label_splits())
def test_bins_do_not_depend_on_blocks_or_on_the_order_of_the_examples(split):
    labels, logits = split
    whole = reliability(confidences(labels, logits, "multi_label", 1.7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "BLOCK_VALUES", 5)
        assert reliability(confidences(labels[::-1], logits[::-1], "multi_label", 1.7)) == whole
