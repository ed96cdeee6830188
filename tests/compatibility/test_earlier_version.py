"""A dataset, a half-trained run and an export that an earlier version made still work: they outlive its code.

They were made with trainer 0.1.0 (3e56ec3) from the digits 0, 1 and 7 of scikit-learn:

    trainer prepare photos --out dataset --val 0.2 --test 0.2
    trainer launch <ARGUMENTS> --run-dir run      killed after its first checkpoint, step 9 of 108
    trainer launch <ARGUMENTS> --run-dir whole    whole_run.safetensors: its weights at the end
    trainer export whole --out export --name digits --allow-failed --formats saved_model,tflite-float32,onnx
"""

import json
import pathlib
import shlex
import shutil

import httpx
import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from trainer.cli.app import app

MADE = pathlib.Path(__file__).with_name("made_by_0_1_0")
ARGUMENTS = shlex.split(
    "--data dataset --device cpu --set model.backbone=backbone.keras --set model.weights=none --set model.pixels=0-1 "
    "--set model.image_size_px=16 --set train.global_batch_size=20 --set train.epochs=12 --set train.ema_decay=0.8 "
    "--set optimizer.learning_rate=0.01 --set augment.preset=light --set checkpoint.every_steps=40 "
    "--set log.every_steps=10"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy, whose files name the folder that they are in now."""
    place = tmp_path_factory.mktemp("earlier") / "place"
    shutil.copytree(MADE, place)
    for path in (place / "run").glob("*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace("PLACE", str(place)), encoding="utf-8")
    return place


@pytest.fixture(autouse=True)
def _in_place(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_same_command_goes_on_with_the_run_and_ends_with_the_weights_of_the_whole_one(place: pathlib.Path) -> None:
    invoke("launch", *ARGUMENTS, "--run-dir", "run")
    expected = safetensors.numpy.load_file(place / "whole_run.safetensors")
    found = safetensors.numpy.load_file(place / "run/checkpoints/step-00000108/model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():  # processors differ in the last bits
        np.testing.assert_allclose(found[name], values, atol=2e-3, err_msg=name)
    lines = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    made = (MADE / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0] == json.loads(made[0]), "a new run, and not the one that was half done"
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 108
    evaluated = json.loads(invoke("evaluate", "run", "--split", "test", "--json"))
    assert evaluated["accuracy"] > 0.9
    assert "report.html" in invoke("report", "run")


def test_the_export_verifies_predicts_and_answers_over_rest() -> None:
    from serving.models.model import Model, Models
    from serving.rest.rest_server import build_app
    from tests.serving.running_server import running_server

    invoke("verify", "export")
    (predicted,) = json.loads(invoke("predict", "export", "seven.png", "--json"))["predictions"]
    assert predicted["classes"][0]["label"] == "digit 7"
    model = Model(name="digits", base_path=pathlib.Path("export/saved_model/digits"), versions="all")
    model.load()
    with running_server(build_app(Models(model), max_body_bytes=1_000_000)) as url:
        (over_rest,) = json.loads(invoke("predict", url, "seven.png", "--json"))["predictions"]
        assert httpx.get(f"{url}/v1/models/digits").json()["model_version_status"][0]["version"] == "1"
    assert over_rest["classes"][0]["label"] == "digit 7"


def test_the_dataset_starts_a_new_run_and_the_export_gets_manifests(place: pathlib.Path) -> None:
    invoke("launch", *ARGUMENTS, "--set=train.epochs=1", "--run-dir", "new")
    assert (place / "new/checkpoints/step-00000009").is_dir()
    invoke("manifests", "export", "--out", "manifests")
    assert (place / "manifests/kustomization.yaml").is_file()
