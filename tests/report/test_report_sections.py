"""Sections of the report that depend on the task, and those that a slice or a tuned value fills."""

import shutil

import numpy as np
import PIL.Image
import pytest

from tests.report.test_report import assert_self_contained, flat, page_of
from trainer.metrics.evaluation import save_arrays
from trainer.metrics.scores import sigmoid
from trainer.metrics.summary import summarize, tune
from trainer.report.pictures import choose_mistakes
from trainer.report.saliency import overlay
from trainer.run.run_dir import RunDir


@pytest.fixture
def copied(digits_run, tmp_path) -> RunDir:
    return RunDir(shutil.copytree(digits_run.run.path, tmp_path / "run"))


def evaluate_again(run: RunDir, labels, logits, **options):
    names = run.info().class_names
    evaluation = summarize(labels, logits, names, split="test", global_step=400, **options)
    save_arrays(run.evaluation_dir, split="test", global_step=400, labels=labels, logits=logits)
    evaluation.save(run.evaluation_dir)
    return evaluation


def test_calibration_and_ranking_are_those_of_the_evaluation(digits_run, copied, tmp_path):
    tuning = tune(digits_run.labels, digits_run.logits, task="single_label", global_step=400)
    evaluation = evaluate_again(copied, digits_run.labels, digits_run.logits, tuning=tuning)
    page = page_of(copied, tmp_path)
    text = flat(page.text)
    assert f"The expected calibration error is {evaluation.calibration.ece:.3f} over 15 bins" in text
    assert f"Divided by the temperature {tuning.temperature:.3f}" in text
    assert f"mAP {evaluation.ranking.average_precision:.3f}" in text
    low, high = evaluation.intervals.roc_auc
    assert f"ROC AUC{evaluation.ranking.roc_auc:.4f}95% interval {low:.3f} to {high:.3f}" in text
    ranked = sorted(evaluation.classes, key=lambda c: -c.roc_auc)
    assert f"{ranked[0].name}{ranked[0].roc_auc:.3f}" in text and f"{ranked[-1].name}{ranked[-1].roc_auc:.3f}" in text
    dots = [
        a for tag, a in page.elements if tag == "path" and a.get("class") == "dot line-train" and a["d"][-2:] == "h0"
    ]
    assert len(dots) >= sum(b.count > 0 for b in evaluation.calibration.bins)


def test_slices_are_shown_with_their_intervals(digits_run, copied, tmp_path):
    columns = {"<camera>": ["<b>left</b>" if i % 4 else "right" for i in range(360)]}
    evaluation = evaluate_again(copied, digits_run.labels, digits_run.logits, columns=columns)
    page = page_of(copied, tmp_path)
    assert_self_contained(page)
    text = flat(page.text)
    assert "<camera>" in text and "<b>left</b>" in text
    for part in evaluation.slices:
        assert f"{part.value}{part.num_examples}{part.accuracy:.1%}" in text
    assert sum(a.get("class") == "interval" for _, a in page.elements) == 2


def test_what_differs_from_the_defaults_stands_beside_them(digits_run, tmp_path):
    text = flat(page_of(digits_run.run, tmp_path).text)
    assert "optimizer.learning_rate0.050.001" in text and "data.pathdigitsnull" in text


def test_cost_names_the_time_the_speed_and_the_machine(digits_run, tmp_path):
    text = flat(page_of(digits_run.run, tmp_path).text)
    cost = text[text.index("Cost") :]
    assert "first to last logged step" in cost and "Steps400" in cost and "Replicas2 CPU replicas" in cost


def test_a_run_without_a_checkpoint_has_no_heat_maps_and_says_why(digits_run, tmp_path):
    assert "No heat maps:" in page_of(digits_run.run, tmp_path).text
    assert "holds no checkpoint" in page_of(digits_run.run, tmp_path).text
    assert "No heat maps: none were asked for." in page_of(digits_run.run, tmp_path, num_saliency_images=0).text


def several_labels(digits_run) -> tuple[np.ndarray, np.ndarray]:
    """Each digit and whether it is even (class 0), as if an image had both; the images of the run fit no longer."""
    labels = np.eye(10, dtype=np.int64)[digits_run.labels]
    labels[:, 0] = digits_run.labels % 2 == 0
    return labels, (digits_run.logits - 2).astype(np.float32)


def test_several_labels_have_thresholds_in_place_of_a_matrix(digits_run, copied, tmp_path):
    labels, logits = several_labels(digits_run)
    tuning = tune(labels, logits, task="multi_label", global_step=400)
    evaluation = evaluate_again(copied, labels, logits, task="multi_label", tuning=tuning)
    page = page_of(copied, tmp_path)
    assert_self_contained(page)
    text = flat(page.text)
    assert page.cells == [] and "Confusions" not in text
    assert f"test exact match{evaluation.accuracy:.2%}" in text
    half, tuned = evaluation.at_thresholds
    assert f"One half{half.accuracy:.1%}{half.f1:.1%}" in text and f"Tuned{tuned.accuracy:.1%}{tuned.f1:.1%}" in text
    for of_class in evaluation.classes:
        assert f"{of_class.name}{of_class.threshold:.3f}" in text
    assert "the dataset is another one" in text, "the images have one label each"


def test_the_worst_errors_of_several_labels_are_those_of_the_highest_loss(digits_run):
    labels, logits = several_labels(digits_run)
    evaluation = summarize(
        labels, logits, list("abcdefghij"), task="multi_label", split="test", global_step=1, num_resamples=0
    )
    chosen = choose_mistakes(labels, logits, 12, evaluation)
    wrong = ((sigmoid(logits) >= 0.5) != labels).any(axis=1)
    losses = -np.log(np.where(labels > 0, sigmoid(logits), 1 - sigmoid(logits))).mean(axis=1)
    assert wrong[chosen].all()
    assert losses[chosen] == pytest.approx(np.sort(losses[wrong])[::-1][:12])


def test_the_heat_lies_where_the_map_is_hot():
    image = np.full([8, 8, 3], 100, np.uint8)
    heat = np.zeros([2, 2], np.float32)
    heat[0, 1] = 1
    shown = np.asarray(overlay(image, heat)).astype(int)
    assert isinstance(overlay(image, heat), PIL.Image.Image)
    changed = np.abs(shown - 100).sum(axis=2)
    assert np.unravel_index(changed.argmax(), changed.shape)[0] < 4 <= np.unravel_index(changed.argmax(), (8, 8))[1]
    assert changed[7, 0] < changed.max() / 20
