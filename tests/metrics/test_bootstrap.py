import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.score_cases import (
    binary_splits,
    multi_label_splits,
    names,
    single_label_splits,
    skewed_multi_label,
)
from trainer.metrics import bootstrap
from trainer.metrics.comparison import paired_differences
from trainer.metrics.predictions import wilson_interval
from trainer.metrics.summary import summarize


def assert_resampling_is_repeating(split, task):
    """Counts of a resample against the metric of the examples repeated so often."""
    labels, logits = split
    statistics = bootstrap.make_statistics(labels, logits, task)
    counts = np.concatenate(list(bootstrap.draw_resamples(len(labels), 5, seed=1)))
    assert counts.shape == (5, len(labels)) and (counts.sum(axis=1) == len(labels)).all()
    values = {name: statistic(counts) for name, statistic in statistics.items()}
    assert set(values) == {"accuracy", "macro_f1", "average_precision", "roc_auc"}
    for i in range(5):
        rows = np.repeat(np.arange(len(labels)), counts[i].astype(int))
        again = summarize(
            labels[rows], logits[rows], names(logits.shape[1]), task=task, split="test", global_step=1, num_resamples=0
        )
        assert values["accuracy"][i] == pytest.approx(again.accuracy)
        assert np.nan_to_num(values["macro_f1"][i]) == pytest.approx(again.macro.f1)
        for name in ("average_precision", "roc_auc"):
            expected = getattr(again.ranking, name)
            if expected is None:
                assert np.isnan(values[name][i])
            else:
                assert values[name][i] == pytest.approx(expected)


@settings(deadline=None, max_examples=25)
@given(single_label_splits())
def test_a_resample_of_one_label_is_the_metric_of_repeated_examples(split):
    assert_resampling_is_repeating(split, "single_label")


@settings(deadline=None, max_examples=25)
@given(multi_label_splits())
def test_a_resample_of_several_labels_is_the_metric_of_repeated_examples(split):
    assert_resampling_is_repeating(split, "multi_label")


@settings(deadline=None, max_examples=25)
@given(binary_splits())
def test_a_resample_of_a_binary_split_is_the_metric_of_repeated_examples(split):
    assert_resampling_is_repeating(split, "binary")


def test_the_interval_of_the_accuracy_is_near_wilsons():
    rng = np.random.default_rng(0)
    labels = np.zeros(800, np.int64)
    logits = np.stack([np.ones(800), 2.0 * (rng.random(800) < 0.2)], axis=1).astype(np.float32)
    evaluation = summarize(labels, logits, names(2), split="test", global_step=1)
    wilson = wilson_interval(round(evaluation.accuracy * 800), 800)
    assert evaluation.intervals.accuracy == pytest.approx(wilson, abs=0.006)
    low, high = evaluation.intervals.accuracy
    # An interval of 90% would be narrower by 16%.
    assert high - low == pytest.approx(wilson[1] - wilson[0], rel=0.1)
    assert evaluation.intervals.num_resamples == 1000


def test_the_interval_of_an_area_covers_the_truth_as_often_as_it_says():
    """200 samples of a population whose area is known: 95% hold it, give or take four standard errors."""
    truth = sklearn.metrics.roc_auc_score(*_population(200_000, seed=0))
    held = 0
    for seed in range(1, 201):
        labels, logit = _population(150, seed)
        logits = np.stack([np.zeros_like(logit), logit], axis=1).astype(np.float32)
        statistics = bootstrap.make_statistics(labels, logits, "binary")
        of_area = {"roc_auc": statistics["roc_auc"]}
        values = bootstrap.resample(of_area, len(labels), 400)["roc_auc"]
        low, high = bootstrap.interval_around(bootstrap.estimates(of_area, len(labels))["roc_auc"], values)
        held += low <= truth <= high
    assert 0.95 - 4 * np.sqrt(0.95 * 0.05 / 200) <= held / 200 <= 1


def _population(num_examples: int, seed: int):
    rng = np.random.default_rng(seed)
    labels = (rng.random(num_examples) < 0.4).astype(np.int64)
    return labels, rng.normal(size=num_examples) + labels


METRICS = ["accuracy", "macro_f1", "average_precision", "roc_auc"]


@settings(deadline=None, max_examples=40)
@given(st.one_of(st.tuples(st.just("single_label"), single_label_splits()),
                 st.tuples(st.just("multi_label"), multi_label_splits()),
                 st.tuples(st.just("binary"), binary_splits())))  # fmt: skip
def test_every_interval_holds_its_estimate_and_stays_within_what_the_metric_can_be(case):
    task, (labels, logits) = case
    class_names = names(logits.shape[1])
    found = summarize(labels, logits, class_names, task=task, split="test", global_step=1, num_resamples=60)
    of_metrics = {
        "accuracy": found.accuracy,
        "macro_f1": found.macro.f1,
        "average_precision": found.ranking.average_precision,
        "roc_auc": found.ranking.roc_auc,
    }
    for name in METRICS:
        interval = getattr(found.intervals, name)
        if interval is not None:
            low, high = interval
            assert 0 <= low <= of_metrics[name] + 1e-9 and of_metrics[name] - 1e-9 <= high <= 1, name
    low, high = found.accuracy_interval
    assert low <= found.accuracy <= high
    first, second = (bootstrap.make_statistics(labels, sign * logits, task) for sign in (1, -1))
    for difference in paired_differences(first, second, len(labels), num_resamples=60).values():
        if difference.interval is not None:
            low, high = difference.interval
            assert -1 <= low <= difference.value + 1e-9 and difference.value - 1e-9 <= high <= 1


def test_classes_that_resamples_lack_do_not_move_an_interval_off_its_estimate():
    # Five classes of one or two images each: most resamples lack some, and rank those that are there more easily.
    labels = np.arange(8) % 5
    logits = np.random.default_rng(1).normal(size=[8, 5]).astype(np.float32)
    found = summarize(labels, logits, names(5), split="test", global_step=1)
    statistics = bootstrap.make_statistics(labels, logits, "single_label")
    resampled = bootstrap.resample(statistics, 8)["average_precision"]
    assert np.nanpercentile(resampled, 2.5) > found.ranking.average_precision, "the case that is mended"
    low, high = found.intervals.average_precision
    assert low < found.ranking.average_precision < high


def test_the_same_seed_gives_the_same_interval_and_blocks_do_not_matter(monkeypatch):
    labels, logits = skewed_multi_label(60, seed=0)
    whole = summarize(labels, logits, names(3), task="multi_label", split="test", global_step=1).intervals
    monkeypatch.setattr(bootstrap, "_BLOCK_VALUES", 60 * 64)
    assert summarize(labels, logits, names(3), task="multi_label", split="test", global_step=1).intervals == whole


def test_metrics_that_most_resamples_do_not_define_have_no_interval():
    labels, logits = np.zeros(5, np.int64), np.eye(2, dtype=np.float32)[[0, 0, 1, 0, 0]]
    intervals = summarize(labels, logits, names(2), split="test", global_step=1).intervals
    assert intervals.roc_auc is None and intervals.accuracy is not None


def test_splits_too_large_to_resample_their_areas_have_no_interval_of_them(monkeypatch):
    monkeypatch.setattr(bootstrap, "MAX_RANKED", 100)
    labels, logits = skewed_multi_label(60, seed=0)
    intervals = summarize(labels, logits, names(3), task="multi_label", split="test", global_step=1).intervals
    assert intervals.average_precision is None and intervals.roc_auc is None and intervals.macro_f1 is not None
