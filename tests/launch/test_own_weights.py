"""Runs that start from what the user has: a saved model as the backbone, and the weights of another run."""

import json
import pathlib
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
import safetensors.numpy
from launching import command

from trainer.config.config import load_config
from trainer.distribute.mirrored import make_engine
from trainer.errors import ConfigError, ModelError, RunError
from trainer.launch.plan_run import PlannedRun, plan_run
from trainer.launch.start_run import start_run
from trainer.model.classifier import named_arrays, saved_variables
from trainer.model.match_weights import WeightsReport
from trainer.run.checkpoint_store import find_model_file
from trainer.run.load_classifier import load_classifier
from trainer.run.run_dir import RunDir
from trainer.training.make_state import make_state

pytestmark = pytest.mark.slow


def no_note(_: str) -> None: ...


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("own") / "mine.keras"
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(6, 3, activation="relu", name="one")(pixels)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="two")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(pixels, keras.layers.Dense(5)(x), name="mine").save(path)
    return path


@pytest.fixture(scope="module")
def own_classifier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A saved model of as many classes as there are digits."""
    path = tmp_path_factory.mktemp("own") / "whole.keras"
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 3, activation="relu", name="one")(pixels))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(12, activation="relu", name="hidden")(x))
    whole = keras.Model(pixels, keras.layers.Dense(10, activation="softmax", name="classes")(x), name="whole")
    whole.get_layer("classes").bias.assign(np.linspace(-1, 1, 10))
    whole.save(path)
    whole.save_weights(path.with_name("whole.weights.h5"))
    return path


def _plan(
    run_dir: pathlib.Path, digits: pathlib.Path, own_model: pathlib.Path, *overrides: str, recipe: str | None = None
) -> PlannedRun:
    settings = [f"data.path={digits}", "distribute.device=cpu", "train.epochs=0.2", "optimizer.learning_rate=0.01"]
    settings += [f"model.backbone={own_model}", "model.pixels=0-1", *overrides]
    return plan_run(load_config(overrides=settings, recipe=recipe), run_dir=run_dir, resume=True, note=no_note)


@pytest.fixture(scope="module")
def run(digits: pathlib.Path, own_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    planned = _plan(tmp_path_factory.mktemp("runs") / "first", digits, own_model)
    start_run(planned, no_note)
    return planned.run


def test_a_saved_model_is_trained_from_its_own_weights_and_loaded_again(run: RunDir, own_model: pathlib.Path) -> None:
    assert run.info().weights == "bundled"
    assert run.info().image_size_px == 16
    classifier = load_classifier(run)
    images = np.full((1, 16, 16, 3), 255, np.float32)
    np.testing.assert_allclose(classifier.get_layer("scale_pixels")(images), np.ones_like(images))
    trained = classifier.get_layer("mine").get_layer("one").get_weights()[0]
    saved = keras.models.load_model(own_model).get_layer("one").get_weights()[0]
    assert not np.array_equal(trained, saved)
    np.testing.assert_allclose(trained, saved, atol=0.2)  # a few steps from there


def test_the_last_layer_of_a_saved_model_goes_on_where_it_was_and_alone_is_trained(
    digits: pathlib.Path, own_classifier: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    planned = _plan(tmp_path / "run", digits, own_classifier, "optimizer.learning_rate=1e-7", recipe="own-model")
    plan = planned.plan
    assert (plan.model.head, plan.model.to_last_layer, plan.model.trainable) == ("keep", True, "head")
    kept = f"the last layer of {own_classifier} is kept: it has 10 classes, as the dataset, and its file does not name"
    assert plan.model.head_reason.startswith(kept)
    start_run(planned, no_note)
    classifier, saved = load_classifier(planned.run), keras.models.load_model(own_classifier)
    for name in ("one", "hidden"):
        trained, before = classifier.get_layer("whole").get_layer(name), saved.get_layer(name)
        np.testing.assert_array_equal(trained.kernel, before.kernel)
    assert not np.array_equal(classifier.get_layer("head").kernel, saved.get_layer("classes").kernel)
    images = np.random.default_rng(0).integers(0, 256, [4, 16, 16, 3]).astype(np.float32)
    np.testing.assert_allclose(keras.ops.softmax(classifier(images)), saved(images / 255), rtol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "expected", "reason"),
    [
        ((), ("keep", True), "it has 10 classes"),
        (("model.weights={weights}",), ("keep", True), "whole.weights.h5 is kept"),
        (("model.head=replace",), ("replace", False), "as asked"),
        (("model.weights=none",), ("replace", False), "so that nothing is started from"),
        (("model.hidden_units=[4]",), ("replace", False), "layers that .*whole.keras does not have"),
        (("model.features_at=one",), ("replace", False), "model.features_at is one"),
        (("augment.progressive_sizes_px=[8,16]",), ("replace", False), "changes the size of the images"),
    ],
)
def test_a_last_layer_is_kept_where_it_is_of_the_same_classes(
    overrides: tuple[str, ...],
    expected: tuple[str, bool],
    reason: str,
    digits: pathlib.Path,
    own_classifier: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    weights = own_classifier.with_name("whole.weights.h5")
    plan = _plan(tmp_path / "run", digits, own_classifier, *(o.format(weights=weights) for o in overrides)).plan
    assert (plan.model.head, plan.model.to_last_layer) == expected
    assert re.search(reason, plan.model.head_reason), plan.model.head_reason


def test_a_last_layer_of_other_classes_is_a_new_one_and_keeping_it_is_an_error(
    run: RunDir, digits: pathlib.Path, own_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    plan = _plan(tmp_path / "run", digits, own_model).plan
    assert plan.model.head == "replace"
    assert (
        "mine.keras answers with 5 numbers, and the 10 classes of this single_label model need 10"
        in plan.model.head_reason
    )
    with pytest.raises(
        ConfigError, match=r"model\.head is keep, but .* answers with 5 numbers, .* model\.head=replace"
    ):
        _plan(tmp_path / "run", digits, own_model, "model.head=keep")
    renamed = tmp_path / "renamed"
    shutil.copytree(run.path, renamed)
    info = json.loads(RunDir(renamed).info_file.read_text())
    info["class_names"][3] = "three"
    RunDir(renamed).info_file.write_text(json.dumps(info))
    plan = _plan(tmp_path / "run", digits, own_model, f"model.weights={renamed}").plan
    assert plan.model.head == "replace"
    assert "class 3 of the weights is called 'three', and that of the dataset '3'" in plan.model.head_reason


def test_a_model_without_features_for_a_new_head_can_only_be_kept(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pixels = keras.Input((16, 16, 3))
    flat = keras.layers.Dense(10)(keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(pixels)))
    keras.Model(pixels, flat).save(tmp_path / "flat.keras")
    assert _plan(tmp_path / "run", digits, tmp_path / "flat.keras").plan.model.to_last_layer
    with pytest.raises(ModelError, match="has no features of height, width and channels"):
        _plan(tmp_path / "run", digits, tmp_path / "flat.keras", "model.head=replace")


def test_weights_of_a_backbone_have_no_last_layer_to_keep(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"\(bundled\) are those of a backbone, not of a classifier of yours"):
        overrides = [f"data.path={digits}", "distribute.device=cpu", "model.head=keep"]
        plan_run(load_config(overrides=overrides), run_dir=tmp_path / "run", resume=True, note=no_note)


def test_a_run_from_before_heads_were_kept_goes_on_with_the_one_it_has(
    digits: pathlib.Path, own_classifier: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    before = _plan(tmp_path / "run", digits, own_classifier, "model.head=replace")
    info = before.plan.run_info(before.config, "run")
    before.run.create(load_config(overrides=[]), info)
    old = {
        key: value for key, value in json.loads(info.model_dump_json()).items() if key not in ("head", "to_last_layer")
    }
    before.run.info_file.write_text(json.dumps(old))
    assert _plan(tmp_path / "run", digits, own_classifier).plan.model.head == "replace"
    with pytest.raises(RunError, match=r"its model\.head is replace, and now keep"):
        _plan(tmp_path / "run", digits, own_classifier, "model.head=keep")


def test_a_run_starts_from_another_and_goes_on_with_its_head(
    run: RunDir, digits: pathlib.Path, own_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    planned = _plan(tmp_path / "second", digits, own_model, f"model.weights={run.path}", "optimizer.learning_rate=1e-9")
    assert (planned.plan.model.head, planned.plan.model.to_last_layer) == ("keep", False)
    assert planned.plan.model.head_reason.endswith("is kept: it has 10 classes, as the dataset, and of the same names")
    state = make_state(
        planned.plan, planned.config, make_engine(planned.topology), None, on_weights=(reports := []).append
    )
    theirs = safetensors.numpy.load_file(find_model_file(run)[0])
    for name, array in named_arrays(saved_variables(state.model)).items():
        np.testing.assert_array_equal(array, theirs[name])
    assert reports[0].left_over == [] and reports[0].share == 1


def test_a_run_starts_from_the_backbone_of_another(
    run: RunDir, digits: pathlib.Path, own_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    overrides = (f"model.weights={run.path}", "model.trainable=head", "model.head=replace")
    planned = _plan(tmp_path / "second", digits, own_model, *overrides)
    notes: list[str] = []
    start_run(planned, notes.append)
    best = find_model_file(run)[0]
    report = WeightsReport.model_validate_json(planned.run.weights_file.read_bytes())
    assert report.file == planned.plan.model.weights == str(best)
    assert report.share == 1
    assert report.left_over == ["head/kernel", "head/bias"]
    assert report.summary() in notes
    theirs, mine = (safetensors.numpy.load_file(find_model_file(r)[0]) for r in (run, planned.run))
    assert {name for name in theirs if not np.array_equal(theirs[name], mine[name])} == {
        name for name in theirs if "head/" in name
    }


def test_a_run_without_a_checkpoint_is_no_source_of_weights(
    digits: pathlib.Path, own_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="is not a run directory"):
        _plan(tmp_path / "run", digits, own_model, f"model.weights={tmp_path / 'empty'}")


def test_a_saved_model_without_a_word_on_its_pixels_is_refused_before_the_start(
    digits: pathlib.Path, own_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ModelError, match=r"model\.pixels is not set"):
        _plan(tmp_path / "run", digits, own_model, "model.pixels=null")


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_backbone_with_code_of_its_own_is_trained_by_a_command_that_trusts_it(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    pixels = keras.Input((16, 16, 3))
    doubled = keras.layers.Lambda(lambda x: x * 2, output_shape=(16, 16, 3))(pixels)
    keras.Model(pixels, keras.layers.Conv2D(4, 3)(doubled)).save(tmp_path / "mine.keras")
    backbone = (f"--set=model.backbone={tmp_path / 'mine.keras'}", "--set=model.pixels=0-1", "--set=train.epochs=0.1")

    def launch(*options: str) -> subprocess.CompletedProcess[str]:
        own = (f"--data={digits}", f"--run-dir={tmp_path / 'run'}", "--device=cpu", *backbone, *options)
        return subprocess.run(command("launch", *own), capture_output=True, text=True, timeout=600)

    refused = launch()
    assert refused.returncode == 2 and "run its code with --trust" in " ".join(refused.stderr.split())
    trusted = launch("--trust")
    assert trusted.returncode == 0, trusted.stderr
    assert (tmp_path / "run/checkpoints").is_dir()
    # The run does not say it for those that come after.
    assert launch().returncode == 2
