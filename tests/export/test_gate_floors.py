"""The gate judges more than an average: agreement, every class by itself, and what the answers still say."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from digits_classifier import GEOMETRY, SIZE_PX, ListedImages
from exported import Exported
from test_int8_ladder import publish_and_watch
from test_parity_gate import with_model

from export.files.formats import CLIENT_BUDGET, FORMATS, TFLITE_INT8, Budget
from export.files.signature import Signature
from export.gate.figures import compare_probabilities, find_failure
from export.gate.golden import Golden, max_replay_difference
from export.gate.replay import replay_golden, verify_export
from export.pipeline.make_export import ExportRequest

pytestmark = pytest.mark.slow

BUDGETS = {**{f.name: f.budget for f in FORMATS.values()}, "client_pixels": CLIENT_BUDGET}
JUDGED_BY_ACCURACY = [name for name, budget in BUDGETS.items() if budget.max_difference is None]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def in_8_bits(probabilities: np.ndarray) -> np.ndarray:
    return (np.round(probabilities * 256) / 256).astype(np.float32)


def sound_model(num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of 1,000 images, their classes, and what a sound integer file makes of the logits."""
    random = np.random.default_rng(14)
    class_ids = random.integers(0, num_classes, 1000)
    logits = random.normal(0, 1, (1000, num_classes))
    logits[np.arange(1000), class_ids] += 6
    return logits, class_ids, logits + random.normal(0, 0.15, logits.shape)


def judge(
    expected: np.ndarray, answers: np.ndarray, class_ids: np.ndarray, budget: Budget, several: bool = False
) -> str | None:
    thresholds = [0.5] * expected.shape[-1] if several else None
    return find_failure(compare_probabilities(expected, answers, class_ids, budget, thresholds), budget)


@pytest.mark.parametrize("name", JUDGED_BY_ACCURACY)
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_a_sound_file_of_few_bits_passes(name: str, num_classes: int) -> None:
    logits, class_ids, noisy = sound_model(num_classes)
    assert judge(softmax(logits), in_8_bits(softmax(noisy)), class_ids, BUDGETS[name]) is None


@pytest.mark.parametrize("name", JUDGED_BY_ACCURACY)
def test_a_file_that_agrees_with_a_weak_model_of_1000_classes_on_a_fifth_of_the_images_fails(name: str) -> None:
    """As seen: accuracy 3%, which the file keeps to the point, since there is nothing to lose."""
    random = np.random.default_rng(14)
    logits = random.normal(0, 0.3, (2000, 1000))
    expected, answers = softmax(logits), softmax(random.normal(0, 0.3, logits.shape))
    class_ids = expected.argmax(axis=-1)
    wrong = random.random(2000) > 0.03
    class_ids[wrong] = random.integers(0, 1000, int(wrong.sum()))
    agreeing = random.random(2000) < 0.22
    answers[agreeing] = expected[agreeing]
    answers[class_ids == expected.argmax(axis=-1)] = expected[class_ids == expected.argmax(axis=-1)]
    figures = compare_probabilities(expected, answers, class_ids, BUDGETS[name])
    assert 0.02 < figures.reference_accuracy < 0.05 and 0.2 < figures.agreement < 0.3
    assert figures.reference_accuracy - figures.accuracy < 0.01, "the average sees nothing"
    assert figures.is_too_weak
    failure = find_failure(figures, BUDGETS[name])
    assert failure is not None and "it agrees with the model on 2" in failure
    assert "the model itself is too weak to be judged by accuracy" in failure


WORTHLESS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all zero": lambda expected: np.zeros_like(expected),
    "constant over the classes": lambda expected: np.full_like(expected, 1 / expected.shape[-1]),
    "constant over the images": lambda expected: np.tile(expected.mean(axis=0), (len(expected), 1)),
    "saturated": lambda expected: (expected == expected.max(axis=-1, keepdims=True)).astype(np.float32),
    "all one": lambda expected: np.ones_like(expected),
    "half of them zero": lambda expected: np.where(np.arange(len(expected))[:, None] % 2, expected, 0),
}


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("kind", WORTHLESS)
@pytest.mark.parametrize("several", [False, True])
def test_answers_that_say_nothing_fail_in_every_format(name: str, kind: str, several: bool) -> None:
    """Of a model that gives every image one class, so that agreement and accuracy stay what they were."""
    random = np.random.default_rng(14)
    logits = random.normal([1.0, 0.0, 0.0], 0.1, (600, 3))
    expected = softmax(logits)
    if several:
        expected = (0.55 + random.random((600, 3)) / 4).astype(np.float32)
    class_ids = np.ones((600, 3), np.int64) if several else np.zeros(600, np.int64)
    answers = WORTHLESS[kind](expected).astype(np.float32)
    if kind == "saturated" and several:
        answers = np.tile(np.array([1, 1, 0], np.float32), (600, 1))
    assert judge(expected, expected.copy(), class_ids, BUDGETS[name], several) is None
    assert judge(expected, answers, class_ids, BUDGETS[name], several) is not None


@pytest.mark.parametrize("name", JUDGED_BY_ACCURACY)
def test_a_rare_class_that_is_lost_fails_though_the_average_is_right(name: str) -> None:
    random = np.random.default_rng(14)
    class_ids = np.array([0] * 990 + [1] * 10)
    expected = softmax(np.eye(3)[class_ids] * 4 + random.normal(0, 0.2, (1000, 3)))
    answers = expected.copy()
    answers[-8:] = answers[-8:, [1, 0, 2]]
    figures = compare_probabilities(expected, answers, class_ids, BUDGETS[name])
    assert figures.reference_accuracy - figures.accuracy < 0.01 and figures.agreement > 0.99
    failure = find_failure(figures, BUDGETS[name])
    assert failure is not None and "it agrees with the model on 20% of the 10 images of class 1," in failure
    named = find_failure(figures, BUDGETS[name], ["cat", "lynx", "dog"])
    assert named is not None and "images of class 'lynx'" in named


@pytest.mark.parametrize("name", BUDGETS)
def test_a_golden_replay_of_small_probabilities_is_no_blank_cheque(name: str) -> None:
    random = np.random.default_rng(14)
    published = softmax(random.normal(0, 0.5, (16, 1000)))
    assert published.max() < BUDGETS[name].max_replay_difference or BUDGETS[name].max_replay_difference < 1e-2
    for answers in (np.zeros_like(published), np.full_like(published, published.max() / 2)):
        assert np.abs(answers - published).max() > max_replay_difference(BUDGETS[name], published)


def test_an_int8_file_of_a_chance_level_model_is_not_published(
    export_request: ExportRequest, validation: ListedImages, tmp_path: pathlib.Path
) -> None:
    """The whole way, with a real converter and runtime: a network of 1,000 classes that has learned nothing."""
    import keras

    keras.utils.set_random_seed(3)
    images = keras.Input((SIZE_PX, SIZE_PX, 3))
    features = keras.layers.Conv2D(8, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(images))
    weak = keras.Model(images, keras.layers.Dense(1000)(keras.layers.GlobalAveragePooling2D()(features)))
    names = [f"class {number}" for number in range(1000)]
    signature = Signature.of_classifier(model_name="weak", class_names=names, geometry=GEOMETRY)
    wanted = dataclasses.replace(with_model(export_request, weak, TFLITE_INT8), signature=signature)
    report = publish_and_watch(wanted, tmp_path / "export")
    (ladder,) = report.ladders
    assert ladder.rungs[0].failure is not None
    assert "too weak to be judged by accuracy" in ladder.rungs[0].failure
    assert any("ACCURACY MEANS LITTLE HERE" in remark for remark in report.remarks())
    assert not any(c.format.startswith("tflite-int8") for c in report.comparisons)
    assert ladder.chosen in ("tflite-dynamic", "tflite-float16"), "what keeps activations of 32 bits tells them apart"
    # What is published then answers its golden images with something.
    golden = Golden.load(tmp_path / "export")
    assert len(set(golden.probabilities.argmax(axis=-1))) > 1
    verify_export(tmp_path / "export").raise_on_failure()


def test_golden_answers_that_say_nothing_verify_nothing(exported: Exported, copy_of_export: pathlib.Path) -> None:
    """Half of them all zero, as seen, and an artifact that agrees with that."""
    report, golden = exported.report, Golden.load(copy_of_export)
    (comparison,) = (c for c in report.comparisons if c.title == "onnx")
    half = np.arange(len(golden.probabilities)) % 2 == 0
    silent = np.where(half[:, np.newaxis], golden.answers["onnx"], np.float32(0))
    changed = dataclasses.replace(golden, answers={**golden.answers, "onnx": silent})
    said = "its answers to 8 of 16 golden images are uninformative; export again"
    assert changed.describe_uninformative("onnx", None) == said and golden.describe_uninformative("onnx", None) is None
    artifacts = report.model_copy(update={"comparisons": [comparison]})

    class Answers:
        def predict_probabilities(self, images: object) -> np.ndarray:
            return silent

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("export.gate.replay.open_runtime", lambda path: Answers())
        (result,) = replay_golden(copy_of_export, artifacts, changed, Signature.load(copy_of_export))
    assert (result.max_difference, result.failure) == (0, said)


def test_golden_images_are_of_every_class_that_the_model_gives(exported: Exported) -> None:
    golden = Golden.load(exported.directory)
    assert set(golden.probabilities.argmax(axis=-1)) == set(range(10))
    assert golden.probabilities.max(axis=-1).min() > 0.5
