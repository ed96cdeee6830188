"""Training on features that were computed once gives what training through the whole network gives."""

import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from feature_runs import FinishedRun, finish_run
from PIL import Image

from trainer.config.config import load_config
from trainer.data.preparation.auto_prepare import prepare_beside
from trainer.distribute.mirrored import make_engine
from trainer.distribute.topology import Topology
from trainer.evaluation.evaluate_run import evaluate_run
from trainer.features import extract
from trainer.run.run_dir import RunDir

pytestmark = pytest.mark.slow


def assert_same_training(run: FinishedRun, other: FinishedRun, *, rtol: float) -> None:
    for name in ("loss", "accuracy", "gradient_norm"):
        np.testing.assert_allclose(run.metrics(name), other.metrics(name), rtol=rtol, atol=1e-7)
    for split in ("validation", "validation_raw"):
        np.testing.assert_allclose(run.metrics("loss", split), other.metrics("loss", split), rtol=rtol)
    weights, expected = run.weights(), other.weights()
    assert len(weights) == len(expected) > 5
    for array, other_array in zip(weights, expected, strict=True):
        np.testing.assert_allclose(array, other_array, rtol=rtol, atol=rtol)


def test_features_of_tensorflow_give_the_same_losses_metrics_and_weights(
    plain_run: FinishedRun, cached_run: FinishedRun
) -> None:
    assert not plain_run.plan.features.is_on and cached_run.plan.features.is_on
    assert len(plain_run.metrics("loss")) == plain_run.plan.schedule.num_train_steps > 10
    assert plain_run.metrics("loss")[0] != plain_run.metrics("loss")[-1]
    assert_same_training(cached_run, plain_run, rtol=1e-5)


def test_on_the_processor_the_plan_names_onnx_runtime_whose_features_train_as_well(
    plain_run: FinishedRun, run_again
) -> None:
    run = run_again()
    assert run.plan.features.runtime == "onnxruntime"
    assert "by ONNX Runtime" in run.plan.features.reason
    assert '"runtime": "onnxruntime"' in (run.path / "plan.json").read_text()
    assert_same_training(run, plain_run, rtol=1e-3)


def test_a_run_on_features_is_evaluated_like_any_other(cached_run: FinishedRun) -> None:
    engine = make_engine(Topology(strategy="single", device="cpu", num_local_replicas=1))
    evaluation = evaluate_run(RunDir(cached_run.path), "validation", engine, which="last")
    np.testing.assert_allclose(evaluation.loss, cached_run.metrics("loss", "validation")[-1], rtol=1e-5)


def test_a_second_run_on_the_same_data_computes_no_feature(
    cached_run: FinishedRun, run_again, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(extract, "EvaluationStep")  # without it, nothing can be computed
    run = run_again("features.runtime=tensorflow", "optimizer.schedule=constant")
    np.testing.assert_array_equal(run.metrics("loss")[0], cached_run.metrics("loss")[0])


def test_features_that_are_not_what_was_written_are_computed_again(
    cached_run: FinishedRun, run_again, tmp_path: pathlib.Path
) -> None:
    store = tmp_path / "store"
    assert cached_run.plan.features.dir is not None
    shutil.copytree(cached_run.plan.features.dir, store)
    damaged = list(store.glob("*/features.float32"))
    for file in damaged:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 64
        file.write_bytes(content)
    run = run_again("features.runtime=tensorflow", f"features.dir={store}")
    assert len(damaged) >= 2
    assert_same_training(run, cached_run, rtol=1e-5)


def test_as_many_views_as_epochs_give_the_losses_of_training_on_changed_images(run_again, tmp_path) -> None:
    changes = ("augment.preset=medium", "features.runtime=tensorflow")
    kept = run_again(*changes, "features.views=3")
    assert kept.plan.features.num_views == 3 == kept.plan.schedule.num_train_steps * 24 // 120
    plain = finish_run(pathlib.Path(kept.plan.data.dataset_dir), tmp_path / "plain", *changes, "features.cache=off")
    assert_same_training(kept, plain, rtol=1e-5)


def test_a_stopped_run_goes_on_with_the_same_weights(
    few_digits: pathlib.Path, cached_run: FinishedRun, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(cached_run.path, tmp_path / "run")
    *_, last = sorted((tmp_path / "run/checkpoints").iterdir())
    shutil.rmtree(last)
    resumed = finish_run(few_digits, tmp_path / "run", "features.runtime=tensorflow")
    assert any("from step 10 of 15" in note for note in resumed.notes)
    for array, expected in zip(resumed.weights(), cached_run.weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_asking_for_views_is_another_run_and_asking_for_a_runtime_is_not() -> None:
    identities = {
        load_config(overrides=settings).identity(dataset_hash="", precision="float32")
        for settings in ([], ["features.runtime=litert"], ["features.cache=off"], ["features.views=2"])
    }
    assert len(identities) == 2


def test_the_features_of_a_folder_with_a_changed_image_are_computed_anew(tmp_path: pathlib.Path) -> None:
    digits = sklearn.datasets.load_digits()
    folder = tmp_path / "photos"
    for i in range(24):
        path = folder / str(digits.target[i] % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).resize((40, 40)).save(path)

    def keep_features(run: str) -> tuple[FinishedRun, np.ndarray[Any, Any]]:
        dataset_dir = prepare_beside(folder, note=lambda _: None)
        settings = ("features.runtime=tensorflow", f"features.dir={tmp_path / 'store'}", "train.global_batch_size=8")
        finished = finish_run(dataset_dir, tmp_path / run, *settings)
        kept = [np.fromfile(file, np.float32) for file in (tmp_path / "store").glob("train-*/features.float32")]
        return finished, np.stack(kept)

    first, before = keep_features("first")
    assert len(before) == 1
    changed = sorted(folder.glob("*/*.png"))[3]
    Image.open(changed).transpose(Image.Transpose.ROTATE_90).save(changed)
    second, after = keep_features("second")
    assert second.plan.data.dataset_hash != first.plan.data.dataset_hash
    assert len(after) == 2, "those of the first dataset are still there, beside those of the second"
    assert not np.array_equal(*after)
    assert second.metrics("loss")[-1] != first.metrics("loss")[-1]
