"""The arithmetic of the gate, for any probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.files.formats import Budget
from export.gate.figures import compare_probabilities, find_failure

FLOAT = Budget(max_difference=1e-4, max_share_set_aside=1e-3, max_replay_difference=1e-4)
INTEGER = Budget(max_accuracy_drop=0.01, max_replay_difference=0.05)


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, classes] and true classes [n]."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(2, 6)))
    raw = draw(hnp.arrays(np.float32, shape, elements=st.floats(0.0009765625, 1, width=32)))
    class_ids = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    return raw / raw.sum(axis=-1, keepdims=True), class_ids


@given(answers())
def test_the_same_answers_pass_every_budget(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, class_ids = drawn
    for budget in (FLOAT, INTEGER):
        figures = compare_probabilities(probabilities, probabilities.copy(), class_ids, budget)
        assert figures.agreement == 1 and figures.max_difference == 0
        assert figures.accuracy == figures.reference_accuracy
        assert find_failure(figures, budget) is None


@given(answers(), st.floats(-2e-4, 2e-4), st.data())
def test_one_moved_probability_is_judged_by_the_budget(
    drawn: tuple[np.ndarray, np.ndarray], change: float, data: st.DataObject
) -> None:
    probabilities, class_ids = drawn
    row, column = (data.draw(st.integers(0, n - 1)) for n in probabilities.shape)
    moved = probabilities.copy()
    moved[row, column] += np.float32(change)
    difference = abs(float(moved[row, column]) - float(probabilities[row, column]))
    figures = compare_probabilities(probabilities, moved, class_ids, FLOAT)
    assert figures.max_difference == difference
    assert (find_failure(figures, FLOAT) is None) == (difference <= 1e-4)


@given(answers(), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans(), st.data())
def test_a_value_that_is_no_number_fails_every_budget_on_either_side(
    drawn: tuple[np.ndarray, np.ndarray], value: float, in_reference: bool, data: st.DataObject
) -> None:
    probabilities, class_ids = drawn
    broken = probabilities.copy()
    broken[tuple(data.draw(st.integers(0, n - 1)) for n in broken.shape)] = value
    pair = (broken, probabilities) if in_reference else (probabilities, broken)
    for budget in (FLOAT, INTEGER):
        with np.errstate(invalid="ignore"):
            figures = compare_probabilities(*pair, class_ids, budget)
        assert "NaN or infinity in the answers to 1 of" in str(find_failure(figures, budget))


@pytest.mark.parametrize(("num_lost", "fails"), [(0, False), (1, False), (2, False), (3, True)])
def test_an_integer_format_may_lose_one_point_of_accuracy_and_no_more(num_lost: int, fails: bool) -> None:
    expected = np.tile(np.float32([0.9, 0.1]), (200, 1))
    answer = expected.copy()
    answer[:num_lost] = answer[:num_lost, ::-1]
    figures = compare_probabilities(expected, answer, np.zeros(200, np.int64), INTEGER)
    assert figures.agreement == pytest.approx(1 - num_lost / 200)
    failure = find_failure(figures, INTEGER)
    assert (failure is not None) == fails
    if failure:
        assert "1.50 points lower than the model's (0.9850 against 1.0000), where 1.0 points are allowed" in failure


def test_another_class_counts_as_clear_only_beyond_twice_the_budget() -> None:
    expected = np.float32([[0.50009, 0.49991], [0.50015, 0.49985]])
    figures = compare_probabilities(expected, expected[:, ::-1], np.zeros(2, np.int64), FLOAT)
    assert (figures.num_clear_disagreements, figures.num_set_aside) == (1, 1)
    assert figures.agreement == 0


@pytest.mark.parametrize(("num_images", "num_other", "fails"), [(600, 1, False), (600, 2, True), (3000, 4, True)])
def test_a_thousandth_of_the_images_is_set_aside_at_most(num_images: int, num_other: int, fails: bool) -> None:
    expected = np.tile(np.float32([0.50002, 0.49998]), (num_images, 1))
    answer = expected.copy()
    answer[:num_other] = answer[:num_other, ::-1]
    figures = compare_probabilities(expected, answer, np.zeros(num_images, np.int64), FLOAT)
    assert (figures.num_set_aside, figures.num_clear_disagreements) == (num_other, 0)
    failure = find_failure(figures, FLOAT)
    assert (failure is not None) == fails
    if failure:
        assert "by a margin too thin to judge" in failure and "may be set aside" in failure


def test_accuracy_comes_with_its_interval() -> None:
    expected = np.tile(np.float32([0.9, 0.1]), (200, 1))
    figures = compare_probabilities(expected, expected, np.zeros(200, np.int64), INTEGER)
    assert figures.accuracy_interval == (pytest.approx(0.9812, abs=1e-4), 1.0)
