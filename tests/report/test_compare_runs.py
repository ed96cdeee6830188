"""`trainer compare`: three runs of softmax regression on scikit-learn's digits, side by side."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.report.test_report import Page, assert_self_contained, flat
from trainer.cli.app import main
from trainer.errors import RunError
from trainer.evaluation.compare_runs import compare_runs
from trainer.metrics.comparison import mcnemar_p_value
from trainer.metrics.evaluation import save_arrays
from trainer.metrics.summary import summarize
from trainer.report.comparison_page import write_comparison
from trainer.run.run_dir import RunDir


def copy_run(digits_run, path: pathlib.Path, *, noise: float, name: str, settings=None, **info) -> RunDir:
    """The same run with logits that are worse by `noise`."""
    run = RunDir(shutil.copytree(digits_run.run.path, path))
    rng = np.random.default_rng(5)
    logits = (digits_run.logits + noise * rng.normal(size=digits_run.logits.shape)).astype(np.float32)
    labels = info.pop("labels", digits_run.labels)
    class_names = info.get("class_names", run.info().class_names)
    dataset_hash = info.pop("dataset_hash", None)
    run.info_file.write_text(run.info().model_copy(update={"name": name, **info}).model_dump_json())
    config = run.config()
    model = config.model.model_copy(update=settings or {})
    run.config_file.write_text(config.model_copy(update={"model": model}).to_yaml())
    evaluation = summarize(
        labels, logits, class_names, split="test", global_step=400, num_resamples=0, dataset_hash=dataset_hash
    )
    save_arrays(run.evaluation_dir, split="test", global_step=400, labels=labels, logits=logits)
    evaluation.save(run.evaluation_dir)
    return run


@pytest.fixture(scope="module")
def three(digits_run, tmp_path_factory) -> list[RunDir]:
    directory = tmp_path_factory.mktemp("compared")
    return [
        copy_run(digits_run, directory / "a", noise=3.0, name="scratch"),
        copy_run(
            digits_run, directory / "b", noise=1.0, name="frozen", weights="bundled", settings={"trainable": "head"}
        ),
        copy_run(digits_run, directory / "c", noise=0.0, name="fine-tuned", weights="bundled"),
    ]


@pytest.fixture(scope="module")
def comparison(three):
    return compare_runs(three)


def correct_of(run: RunDir) -> np.ndarray:
    with np.load(run.evaluation_dir / "test.npz") as arrays:
        return arrays["logits"].argmax(axis=1) == arrays["labels"]


def test_each_run_is_compared_with_the_first(three, comparison):
    assert [run.how for run in comparison.runs] == ["scratch", "frozen", "fine-tuned"]
    first, second, third = (correct_of(run) for run in three)
    assert comparison.runs[0].difference is None
    assert [run.accuracy for run in comparison.runs] == [c.mean() for c in (first, second, third)]
    for run, correct in zip(comparison.runs[1:], (second, third), strict=True):
        accuracy = run.difference.of("accuracy")
        assert accuracy.value == pytest.approx(correct.mean() - first.mean())
        assert accuracy.interval[0] < accuracy.value < accuracy.interval[1]
        assert run.difference.p_value == mcnemar_p_value(first, correct)
        assert {m.metric for m in run.difference.metrics} == {"accuracy", "macro_f1", "average_precision", "roc_auc"}
    p_values = [run.difference.p_value for run in comparison.runs[1:]]
    corrected = [run.difference.corrected_p_value for run in comparison.runs[1:]]
    assert min(corrected) == pytest.approx(min(1.0, 2 * min(p_values)), abs=0), "two comparisons were made"
    assert p_values[1] < 0.001 < 0.9 < mcnemar_p_value(first, first)


def test_cost_and_settings_are_side_by_side(comparison):
    assert comparison.runs[0].cost.num_steps == 400 and comparison.runs[0].cost.replicas == "2 CPU replicas"
    assert comparison.runs[0].cost.training_secs > 0 and comparison.runs[0].cost.images_per_sec > 0
    assert [(s.name, s.values) for s in comparison.settings] == [("model.trainable", ["all", "head", "all"])]


def test_the_page_shows_the_figures_and_nothing_from_outside(three, comparison, tmp_path):
    write_comparison(comparison, three, tmp_path / "compare.html")
    page = Page((tmp_path / "compare.html").read_text())
    assert_self_contained(page)
    text = flat(page.text)
    for run in comparison.runs:
        assert f"{run.accuracy:.1%}" in text
        if run.difference:
            assert f"{run.difference.of('accuracy').value:+.4f}" in text
    assert "model.trainableallheadall" in text.replace(" ", "")
    drawn = [a["class"] for tag, a in page.elements if tag == "path" and len(a["d"]) > 40]
    assert drawn[:3] == ["line-train", "line-validation", "line-third"], "the curves of all three lie over each other"


def test_runs_of_one_name_are_told_apart_by_their_paths(digits_run, three, tmp_path):
    other = copy_run(digits_run, tmp_path / "again", noise=2.0, name="scratch")
    write_comparison(compare_runs([three[0], other]), [three[0], other], tmp_path / "compare.html")
    assert str(other.path) in (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"dataset_hash": "f" * 64}, "was evaluated on another dataset than"),
        ({"labels": "turned"}, "has other labels in the split 'test' than"),
        ({"class_names": [f"digit {i}" for i in range(10)]}, "has other classes than"),
    ],
)
def test_runs_on_other_examples_are_an_error(digits_run, three, tmp_path, change, answer):
    if "labels" in change:
        change = {"labels": digits_run.labels[::-1].copy()}
    other = copy_run(digits_run, tmp_path / "other", noise=0.0, name="other", **change)
    with pytest.raises(RunError, match=answer):
        compare_runs([three[0], other])


def test_one_run_or_the_same_twice_is_an_error(three):
    with pytest.raises(RunError, match="compare from 2 to 8"):
        compare_runs(three[:1])
    with pytest.raises(RunError, match="was given twice"):
        compare_runs([three[0], three[0]])


def test_a_run_that_was_not_evaluated_says_how_to(three):
    with pytest.raises(RunError, match="--split validation"):
        compare_runs(three, "validation")


def test_the_command_prints_a_table_or_json_and_writes_the_page(three, comparison, tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["trainer", "compare", *(str(r.path) for r in three), *arguments])
        monkeypatch.setenv("COLUMNS", "140")
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    table = run("--out", str(tmp_path / "compare.html"))
    assert (tmp_path / "compare.html").is_file()
    for compared in comparison.runs:
        assert compared.name in table and f"{compared.accuracy:.4f}" in table
    assert f"{comparison.runs[2].difference.of('accuracy').value:+.4f}" in table
    assert json.loads(run("--json")) == comparison.model_dump(mode="json")
