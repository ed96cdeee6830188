import base64
import html.parser
import io
import json
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import typer
import typer.testing
from sklearn.datasets import load_digits

from trainer.cli.report import report
from trainer.config.config import load_config
from trainer.errors import RunError
from trainer.metrics.evaluation import save_arrays
from trainer.metrics.scores import softmax
from trainer.metrics.summary import summarize
from trainer.report.pictures import choose_mistakes, choose_samples
from trainer.report.render import write_report
from trainer.run.run_dir import RunDir, RunInfo

HOSTILE_NAMES = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "'><img src=https://example.com/x.png>",
    "{{ 7 * 7 }}",
    "</style><b>",
    "&amp; co",
    "Übermäßig lange Namen, die in keine Spalte passen",
    "url(https://example.com)",
    "日本語",
    "nine",
]
# Four training images, as evaluated and as trained on: nothing random is configured.
NUM_SEEN = 8
VOID_TAGS = {"meta", "img", "col", "br", "link", "input"}


class Page(html.parser.HTMLParser):
    """The elements and the text of a page; fails on a tag that is closed out of order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.styles = ""
        self.cells: list[list[str]] = []
        self._open: list[str] = []
        self._in_matrix = False
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes) -> None:
        attributes = {name: value or "" for name, value in attributes}
        self.elements.append((tag, attributes))
        if tag not in VOID_TAGS:
            self._open.append(tag)
        self._in_matrix |= attributes.get("class") == "matrix"
        if self._in_matrix and tag == "tr":
            self.cells.append([])
        if self._in_matrix and tag == "td":
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attributes) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes what is not open"
        if tag == "table":
            self._in_matrix = False

    def handle_data(self, data) -> None:
        if self._open[-1:] == ["style"]:
            self.styles += data
            return
        self.text += data
        if self._in_matrix and self._open[-1:] == ["td"]:
            self.cells[-1][-1] += data

    def images(self) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def flat(text: str) -> str:
    return " ".join(text.split())


def page_of(run: RunDir, tmp_path, **options) -> Page:
    return Page(write_report(run, out=tmp_path / "report.html", **options).read_text())


def assert_self_contained(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "xlink:href", "poster", "action", "data", "background"):
                assert value.startswith("data:image/"), (tag, name, value)
            if name == "style":
                assert re.fullmatch(r"(--[a-z]+|left|bottom):[-0-9.a-z%;]+(--[a-z]+:[0-9.a-z]+)?", value), value
    assert "url(" not in page.styles and "@import" not in page.styles


@pytest.fixture(scope="module")
def page(digits_run, tmp_path_factory) -> Page:
    return page_of(digits_run.run, tmp_path_factory.mktemp("page"))


@pytest.fixture
def copied(digits_run, tmp_path) -> RunDir:
    """The same run, to be changed."""
    return RunDir(shutil.copytree(digits_run.run.path, tmp_path / "run"))


def test_the_page_refers_to_nothing_outside_itself_and_runs_nothing(page):
    assert_self_contained(page)
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_the_headline_figures_are_those_of_the_evaluation(digits_run, page):
    evaluation, text = digits_run.evaluation, flat(page.text)
    low, high = evaluation.accuracy_interval
    assert evaluation.accuracy > 0.8, "the fixture has learnt something"
    assert f"test accuracy{evaluation.accuracy:.2%}95% interval {low:.2%} to {high:.2%}" in text
    num_wrong = int((digits_run.logits.argmax(axis=1) != digits_run.labels).sum())
    assert f"test images360{num_wrong} classified wrongly" in text
    assert f"Loss{evaluation.loss:.4f}" in text
    assert "Evaluated step400of 400, epoch 22.3" in text
    assert "Training images1,149no step skipped" in text
    assert "Strategymirrored, 2 CPU replicas" in text


def test_the_matrix_shows_every_count(digits_run, page):
    shown = [[int(cell or 0) for cell in row] for row in page.cells[1:]]
    assert shown == digits_run.evaluation.confusion_matrix


def test_each_class_and_the_worst_confusions_are_listed(digits_run, page):
    text = flat(page.text)
    for of_class in digits_run.evaluation.classes:
        cells = [of_class.name, str(of_class.support), f"{of_class.precision:.1%}", f"{of_class.recall:.1%}"]
        assert "".join(cells) in text
    matrix = np.array(digits_run.evaluation.confusion_matrix)
    np.fill_diagonal(matrix, 0)
    true, predicted = np.unravel_index(matrix.argmax(), matrix.shape)
    assert f"Share {true}{predicted}{matrix.max()}" in text


def test_the_images_are_those_of_the_examples_pixel_by_pixel(digits_run, page):
    chosen = [*choose_samples(360, 24), *choose_mistakes(digits_run.labels, digits_run.logits, 12)]
    pixels = load_digits().images[1437:]
    assert len(page.images()) == 36 + NUM_SEEN
    for index, attributes in zip(chosen, page.images()[:36], strict=True):
        assert attributes["class"] == "pixels"
        content = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        shown = np.asarray(PIL.Image.open(io.BytesIO(content)))
        assert shown.shape == (8, 8, 3)
        assert (shown[:, :, 0] == np.round(pixels[index] / 16 * 255)).all()
        assert attributes["alt"] == str(digits_run.labels[index])


def test_without_augmentation_the_model_sees_training_images_as_evaluation_does(digits_run, page):
    labels, first = digits_run.run.info().class_names, page.images()[36:]
    assert "nothing random is done to it" in page.text
    for evaluated, trained in zip(first[::2], first[1::2], strict=True):
        assert evaluated == trained and evaluated["alt"] in labels
    assert len({attributes["alt"] for attributes in first}) == 4, "as many classes as there is room for"


def test_what_the_model_sees_is_mixed_as_the_run_mixed_it(digits_run, copied, tmp_path):
    config = copied.config()
    augment = config.augment.model_copy(update={"preset": "strong"})
    copied.config_file.write_text(config.model_copy(update={"augment": augment}).to_yaml())
    page = page_of(copied, tmp_path)
    assert_self_contained(page)
    assert len(page.images()) == 36 + 4 * 6
    rows = np.reshape([attributes["src"] for attributes in page.images()[36:]], [4, 6])
    assert all(len(set(row)) == 6 for row in rows)
    text = flat(page.text)
    seen = text[text.index("What the model sees") : text.index("Settings")]
    assert "at its first 5 visits, changed by the preset strong" in seen
    assert re.search(r"\d+\.\d% ?\d ?\d+\.\d%", seen), "the shares of both parts of a mixed image"


def test_the_mistakes_are_mistakes_and_the_surest_come_first(digits_run):
    mistakes = choose_mistakes(digits_run.labels, digits_run.logits, 12)
    confidence = softmax(digits_run.logits).max(axis=1)
    wrong = digits_run.logits.argmax(axis=1) != digits_run.labels
    assert wrong[mistakes].all()
    assert (np.diff(confidence[mistakes]) <= 0).all()
    assert confidence[mistakes].min() >= np.delete(confidence, mistakes)[np.delete(wrong, mistakes)].max()


def test_there_are_no_mistakes_where_all_is_right():
    assert choose_mistakes(np.array([0, 1]), np.eye(2, dtype=np.float32), 12).tolist() == []


def test_curves_are_drawn_for_both_splits(page):
    drawn = [a["class"] for tag, a in page.elements if tag == "path" and len(a["d"]) > 40 and "class" in a]
    assert drawn[:6] == ["line-train", "line-validation"] * 2 + ["line-train"] * 2


def test_settings_that_were_changed_are_marked(page):
    changed = [tag for tag, a in page.elements if a.get("class") == "changed"]
    assert changed == ["dt", "dd"] * 3  # data.path, train.epochs, optimizer.learning_rate


def test_a_long_list_of_numbers_is_told_by_its_ends(page):
    assert "20 values, 1e-05 to 100" in page.text


def test_hostile_class_names_are_text(build_run, tmp_path):
    hostile = build_run(tmp_path, HOSTILE_NAMES)
    page = page_of(hostile.run, tmp_path)
    assert_self_contained(page)
    for name in HOSTILE_NAMES:
        assert name in page.text
    assert len(page.images()) == 36 + NUM_SEEN


def test_a_report_without_the_dataset_says_so_and_shows_all_else(digits_run, copied, tmp_path):
    info = copied.info().model_copy(update={"dataset_dir": str(tmp_path / "gone")})
    copied.info_file.write_text(info.model_dump_json())
    page = page_of(copied, tmp_path)
    assert page.images() == []
    assert f"No images: {tmp_path / 'gone'} holds no manifest.json" in flat(page.text)
    assert len(page.cells) == 11
    assert len(page_of(copied, tmp_path, dataset_dir=digits_run.dataset_dir).images()) == 36 + NUM_SEEN


def test_a_dataset_that_is_another_one_now_gives_no_images(copied, tmp_path):
    info = copied.info().model_copy(update={"dataset_hash": "0" * 64})
    copied.info_file.write_text(info.model_dump_json())
    page = page_of(copied, tmp_path)
    assert page.images() == []
    assert "holds another dataset now" in page.text


def test_examples_whose_labels_are_not_those_evaluated_are_not_shown(digits_run, copied, tmp_path):
    save_arrays(
        copied.evaluation_dir,
        split="test",
        global_step=400,
        labels=(digits_run.labels + 1) % 10,
        logits=digits_run.logits,
    )
    page = page_of(copied, tmp_path)
    assert len(page.images()) == NUM_SEEN
    assert "the dataset is another one; evaluate the run again" in page.text


def test_a_run_without_an_evaluation_says_how_to_make_one(copied):
    shutil.rmtree(copied.evaluation_dir)
    with pytest.raises(RunError, match=f"trainer evaluate {copied.path} --split test"):
        write_report(copied)
    assert not copied.report_file.exists()


def test_a_run_copied_in_part_is_reported_as_far_as_it_goes(copied, tmp_path):
    for file in (copied.plan_file, copied.environment_file, copied.metrics_file):
        file.unlink()
    page = page_of(copied, tmp_path)
    assert "The run has logged no metrics." in page.text
    assert "The run directory holds no environment.json." in page.text
    assert "Strategy" not in page.text


def test_a_broken_plan_is_an_error_that_names_it(copied):
    copied.plan_file.write_text("{")
    with pytest.raises(RunError, match=r"plan\.json is not valid JSON"):
        write_report(copied)


def test_steps_skipped_and_values_that_are_not_finite_are_told(copied, tmp_path):
    with copied.metrics_file.open("a") as f:
        f.write('{"step": 400, "split": "train", "time": 1.0, "loss": "NaN", "skipped_steps": 3.0}\n')
    text = flat(page_of(copied, tmp_path).text)
    assert "3 steps skipped, gradient not finite" in text
    assert "(1 not finite, not drawn)" in text


def test_many_classes_give_the_worst_pairs_in_place_of_a_matrix(tmp_path):
    num_classes, run = 60, RunDir(tmp_path / "run")
    names = [f"class {i}" for i in range(num_classes)]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes - 1, 300)
    logits = rng.normal(size=(300, num_classes)).astype(np.float32)
    logits[np.arange(300), labels] += 3
    info = RunInfo(
        name="many", identity="1", dataset_dir=str(tmp_path / "gone"), dataset_hash="2", class_names=names,
        num_train_examples=5, image_size_px=8, weights="none", precision="float32", batch_norm="frozen",
    )  # fmt: skip
    run.create(load_config(), info)
    evaluation = summarize(labels, logits, names, split="test", global_step=9)
    evaluation.save(run.evaluation_dir)
    save_arrays(run.evaluation_dir, split="test", global_step=9, labels=labels, logits=logits)
    page = page_of(run, tmp_path)
    assert page.cells == []
    assert "60 classes are too many for a matrix" in flat(page.text)
    assert "The 20 classes of lowest F1 come first." in flat(page.text)
    assert "The other 40 classes" in page.text
    # The class without examples cannot be judged: it comes last, not among the worst.
    assert flat(page.text).index("class 590") > flat(page.text).index("The other 40 classes")


def test_the_command_prints_where_the_file_is(digits_run, tmp_path):
    app = typer.Typer()
    app.command()(report)
    out = tmp_path / "a folder with a long name" / ("report-" + "x" * 80 + ".html")
    runner = typer.testing.CliRunner()
    done = runner.invoke(app, [str(digits_run.run.path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out) and out.is_file()
    done = runner.invoke(app, [str(digits_run.run.path), "--json"])
    assert json.loads(done.stdout) == {"report": str(digits_run.run.report_file)}
    assert digits_run.run.report_file.read_text().startswith("<!doctype html>")
