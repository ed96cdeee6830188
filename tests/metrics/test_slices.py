import numpy as np
import pytest

from tests.metrics.score_cases import names, skewed_multi_label
from trainer.metrics.slices import group_values, slice_metrics
from trainer.metrics.summary import summarize, tune


def test_a_slice_is_the_evaluation_of_its_examples():
    labels, logits = skewed_multi_label(200, seed=0)
    tuning = tune(labels, logits, task="multi_label", global_step=1)
    cameras = ["b" if i % 3 else "a" for i in range(200)]
    options = {"task": "multi_label", "split": "test", "global_step": 1, "tuning": tuning, "num_resamples": 0}
    whole = summarize(labels, logits, names(3), columns={"camera": cameras}, **options)
    assert [(s.column, s.value, s.num_examples) for s in whole.slices] == [("camera", "a", 67), ("camera", "b", 133)]
    for part in whole.slices:
        rows = np.array(cameras) == part.value
        alone = summarize(labels[rows], logits[rows], names(3), **options)
        assert (part.accuracy, part.macro_f1, part.loss) == (alone.accuracy, alone.macro.f1, alone.loss)
        assert part.average_precision == alone.ranking.average_precision
        assert part.accuracy_interval == alone.accuracy_interval


def test_a_slice_that_the_model_fails_on_is_seen():
    labels = np.arange(100) % 2
    at_night = np.arange(100) < 20
    logits = np.eye(2, dtype=np.float32)[np.where(at_night, 1 - labels, labels)]
    columns = {"light": ["night" if n else "day" for n in at_night]}
    assert [(s.value, s.accuracy) for s in slice_metrics(labels, logits, "single_label", columns)] == [
        ("day", 1.0),
        ("night", 0.0),
    ]


def test_few_numbers_are_values_in_the_order_of_numbers():
    assert group_values(["10", "9", "", "9"])[0] == ["9", "10", "(none)"]
    assert group_values(["10", "9", "", "9"])[1].tolist() == [1, 0, 2, 0]


def test_many_numbers_are_cut_into_quarters():
    values = [str(i) for i in range(101)]
    found, groups = group_values([*values, ""])
    assert found == ["0 to under 25", "25 to under 50", "50 to under 75", "75 to 100", "(none)"]
    assert np.bincount(groups).tolist() == [25, 25, 25, 26, 1]
    assert groups[100] == 3 and groups[101] == 4


def test_the_rarest_of_many_values_make_up_one_slice():
    values = [f"camera {i:02}" for i in range(25) for _ in range(i + 1)]
    found, groups = group_values(values)
    assert len(found) == 21 and found[0] == "camera 05" and found[-1] == "5 other values"
    assert (groups == 20).sum() == 1 + 2 + 3 + 4 + 5


@pytest.mark.parametrize("values", [["nan", "1"], ["inf", "2"], ["a", "3"]])
def test_what_is_no_number_is_a_word(values):
    assert group_values(values)[0] == sorted(values)
