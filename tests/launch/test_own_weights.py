"""Runs that start from what the user has: a saved model as the backbone, and the weights of another run."""

import pathlib
import subprocess

import keras
import numpy as np
import pytest
import safetensors.numpy
from launching import command

from trainer.checkpoint import find_model_file, load_classifier
from trainer.config import load_config
from trainer.errors import ModelError, RunError
from trainer.launch import PlannedRun, plan_run, start_run
from trainer.model.weight_fit import WeightsReport
from trainer.run_dir import RunDir


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


def _plan(run_dir: pathlib.Path, digits: pathlib.Path, own_model: pathlib.Path, *overrides: str) -> PlannedRun:
    settings = [f"data.path={digits}", "distribute.device=cpu", "train.epochs=0.2", "optimizer.learning_rate=0.01"]
    settings += [f"model.backbone={own_model}", "model.pixels=0-1", *overrides]
    return plan_run(load_config(overrides=settings), run_dir=run_dir, resume=True, note=no_note)


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


def test_a_run_starts_from_the_backbone_of_another(
    run: RunDir, digits: pathlib.Path, own_model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    planned = _plan(tmp_path / "second", digits, own_model, f"model.weights={run.path}", "model.trainable=head")
    notes: list[str] = []
    start_run(planned, notes.append)
    best = find_model_file(run)[0]
    report = WeightsReport.model_validate_json(planned.run.weights_file.read_bytes())
    assert report.file == planned.plan.weights == str(best)
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
