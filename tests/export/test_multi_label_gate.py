"""What the gate makes of a multi-label model: sets of labels at thresholds, and outputs that contradict each other."""

from typing import Any

import numpy as np
import pytest

from export.files.formats import Budget
from export.files.signature import Signature
from export.gate.figures import compare_probabilities, find_failure
from export.gate.output_consistency import find_contradiction
from trainer.data.decode.geometry import Geometry

BUDGET = Budget(max_difference=1e-2, max_replay_difference=1e-2)
THRESHOLDS = [0.5, 0.2]
EXPECTED = np.array([[0.9, 0.1], [0.495, 0.3], [0.6, 0.9]], np.float32)
# The first image has no true label that is missed, the second lacks one, the third is right.
TRUTH = np.array([[1, 0], [1, 1], [1, 1]], np.int64)
SIGNATURE = Signature.of_classifier(
    model_name="m",
    class_names=["a", "b"],
    geometry=Geometry(image_size_px=8, resize="crop"),
    task="multi_label",
    thresholds=THRESHOLDS,
)


def test_images_count_whose_labels_are_all_decided_alike_and_right() -> None:
    same = compare_probabilities(EXPECTED, EXPECTED, TRUTH, BUDGET, THRESHOLDS)
    assert (same.agreement, same.accuracy, same.num_images) == (1, pytest.approx(2 / 3), 3)
    near = EXPECTED.copy()
    near[1, 0] = 0.503  # over its threshold, by less than the budget: another decision, but no clear one
    figures = compare_probabilities(EXPECTED, near, TRUTH, BUDGET, THRESHOLDS)
    assert (figures.agreement, figures.num_clear_disagreements) == (pytest.approx(2 / 3), 0)
    assert (figures.accuracy, figures.reference_accuracy) == (1, pytest.approx(2 / 3))
    assert find_failure(figures, BUDGET) is None


def test_another_decision_far_from_the_threshold_is_a_clear_one() -> None:
    far = EXPECTED.copy()
    far[2, 0] = 0.4
    figures = compare_probabilities(EXPECTED, far, TRUTH, BUDGET, THRESHOLDS)
    assert figures.num_clear_disagreements == 1
    assert find_failure(figures, BUDGET) is not None


def outputs(**changed: Any) -> dict[str, Any]:
    answer = {
        "probabilities": EXPECTED,
        "class_id": np.array([0, 0, 1]),
        "label": np.array([b"a", b"a", b"b"], object),
        "predicted": np.greater_equal(EXPECTED, np.array(THRESHOLDS, np.float32)),
        "status": np.array([b"ok"] * 3, object),
    }
    return {**answer, **changed}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"predicted": EXPECTED >= 0.5}, "predicted is not where probabilities reach the thresholds"),
        ({"status": np.array([b"ok", b"undecodable", b"ok"], object)}, "an image that training reads is 'undecodable'"),
        ({"class_id": np.array([0, 1, 1])}, "class_id is not the index of the largest"),
        ({"label": np.array([b"a", b"b", b"b"], object)}, "label of class 0 is 'b' where the signature says 'a'"),
    ],
)
def test_outputs_that_contradict_each_other_are_told(changed: dict[str, Any], told: str) -> None:
    assert find_contradiction(outputs(), SIGNATURE) is None
    found = find_contradiction(outputs(**changed), SIGNATURE)
    assert found is not None and told in found
