"""`trainer export`, `trainer verify` and `trainer predict` on a real run directory."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import typer
from digits_classifier import CLASS_NAMES, read_digits, write_dataset
from typer.testing import CliRunner

import serving.clients.rest_client
from export.files.parity import ParityReport
from tests import small_backbone
from trainer.cli.export import export
from trainer.cli.predict import predict
from trainer.cli.verify import verify
from trainer.config.config import load_config
from trainer.data.dataset.manifest import Manifest
from trainer.errors import ArtifactError, DataError, ParityError, RunError, TrainerError, UsageError
from trainer.model.classifier import build_configured, named_arrays, saved_variables
from trainer.run.checkpoint import Checkpoint, CheckpointInfo
from trainer.run.checkpoint_store import CheckpointStore
from trainer.run.run_dir import RunDir, RunInfo

pytestmark = pytest.mark.slow

SIZE_PX = 32
FORMATS = "tflite-float32,onnx,saved_model"

app = typer.Typer()
for command in (export, verify, predict):
    app.command()(command)


def invoke(*arguments: object) -> str:
    """Standard output of a command; raises what it raises."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def write_run(run: RunDir, dataset_dir: pathlib.Path, manifest: Manifest, *, head_scale: float = 1.0) -> None:
    config = load_config(overrides=[*small_backbone.SETTINGS, "model.weights=none"])
    info = RunInfo(
        name="digits",
        identity="cd" * 32,
        dataset_dir=str(dataset_dir),
        dataset_hash=manifest.content_hash(),
        class_names=CLASS_NAMES,
        num_train_examples=1200,
        image_size_px=SIZE_PX,
        weights="none",
        precision="float32",
        batch_norm="per_replica",
    )
    run.create(config, info)
    model = build_configured(config.model, task="single_label", num_classes=len(CLASS_NAMES), image_size_px=SIZE_PX)
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([kernel * head_scale, bias])
    checkpoint = CheckpointInfo(
        global_step=40,
        identity=info.identity,
        num_replicas=1,
        loss_scale=1.0,
        num_good_steps=0,
        num_skipped_steps=0,
    )
    CheckpointStore.of_run(run, config.checkpoint).save(
        Checkpoint(checkpoint, named_arrays(saved_variables(model)), {}, {})
    )


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("dataset") / "digits"
    write_dataset(directory)
    return directory


@pytest.fixture(scope="module")
def run(dataset_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("run") / "run")
    write_run(run, dataset_dir, Manifest.load(dataset_dir))
    return run


@pytest.fixture(scope="module")
def export_dir(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("command") / "export"
    output = invoke("export", run.path, "--out", directory, "--formats", FORMATS, "--parity-images", 0, "--version", 7)
    for row in (
        "saved_model (image_bytes)",
        "tflite-float32",
        "onnx",
        "300 of 300 validation images",
        "ONLY 300 IMAGES",
    ):
        assert row in output
    assert output.count("passed") == 7 and "FAILED" not in output
    return directory


def test_a_run_is_exported_under_its_name_with_the_asked_formats(export_dir: pathlib.Path) -> None:
    report = ParityReport.load(export_dir)
    assert [a.path for a in report.artifacts()] == [
        "saved_model/digits/7",
        "tflite/digits-float32.tflite",
        "onnx/digits.onnx",
    ]
    assert report.reference == "run digits, step 40 (best checkpoint), float32"
    assert f"backbone: {small_backbone.PATH}" in (export_dir / "MODEL_CARD.md").read_text()


def test_verify_prints_one_answer_for_programs_and_one_for_people(
    export_dir: pathlib.Path, dataset_dir: pathlib.Path
) -> None:
    answer = json.loads(invoke("verify", export_dir, "--data", dataset_dir, "--parity-images", 10, "--json"))
    assert answer["passed"] is True and answer["parity"]["num_images"] == 10
    assert "verified" in invoke("verify", export_dir)


def test_a_red_verification_still_prints_its_answer(export_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from export.files.checksums import Checksums

    damaged = pathlib.Path(shutil.copytree(export_dir, tmp_path / "damaged"))
    (damaged / "onnx/digits.onnx").write_bytes(b"no model")
    Checksums.of(damaged).save(damaged)
    result = CliRunner().invoke(app, ["verify", str(damaged), "--json"])
    assert json.loads(result.stdout)["passed"] is False
    assert isinstance(result.exception, ParityError) and "onnx/digits.onnx" in str(result.exception)


def test_a_run_and_its_export_predict_the_same(run: RunDir, export_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    encoded, _ = read_digits("test").read(np.arange(2))
    for i, content in enumerate(encoded):
        (tmp_path / f"{i}.png").write_bytes(content)
    images = [tmp_path / "0.png", tmp_path / "1.png"]
    answers = [json.loads(invoke("predict", target, *images, "--json")) for target in (run.path, export_dir)]
    by_class = [
        [sorted((c["class_id"], c["probability"]) for c in p["classes"]) for p in answer["predictions"]]
        for answer in answers
    ]
    np.testing.assert_allclose(by_class[0], by_class[1], atol=1e-5)
    assert "probability" in invoke("predict", export_dir / "onnx/digits.onnx", *images, "--top", 2)


def test_an_image_that_cannot_be_read_is_told_beside_the_others_and_fails_the_command(
    export_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "good.png").write_bytes(read_digits("test").read(np.arange(1))[0][0])
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [str(tmp_path / "bad.png"), str(tmp_path / "good.png")]
    result = CliRunner().invoke(app, ["predict", str(export_dir), *images, "--json"])
    bad, good = json.loads(result.stdout)["predictions"]
    assert bad["classes"] == [] and "is not an image" in bad["error"]
    assert len(good["classes"]) == 5 and good["error"] is None
    assert isinstance(result.exception, TrainerError) and result.exception.exit_status == 1
    assert "is not an image" in CliRunner().invoke(app, ["predict", str(export_dir), *images]).stdout


def test_an_address_is_asked_through_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    asked = []
    monkeypatch.setattr(
        serving.clients.rest_client, "predict_images_of_files", lambda *given: asked.append(given) or []
    )
    with pytest.raises(ValueError, match="zip"):  # no answer for the one image
        invoke("predict", "http://localhost:1/v1/models/m", tmp_path / "a.png")
    assert asked == [("http://localhost:1/v1/models/m", [tmp_path / "a.png"])]


def test_a_model_over_budget_is_not_published(dataset_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    broken = RunDir(tmp_path / "run")
    write_run(broken, dataset_dir, Manifest.load(dataset_dir), head_scale=float("nan"))
    result = CliRunner().invoke(
        app, ["export", str(broken.path), "--out", str(tmp_path / "out"), "--formats", "onnx", "--json"]
    )
    assert isinstance(result.exception, ParityError) and result.exception.exit_status == 1
    assert json.loads(result.stdout)["passed"] is False
    assert not (tmp_path / "out").exists()


def refuse(error: type[TrainerError], message: str, *arguments: object) -> None:
    with pytest.raises(error, match=message) as caught:
        invoke("export", *arguments)
    assert caught.value.exit_status == 2


def test_bad_input_is_refused_before_anything_is_made(
    run: RunDir, export_dir: pathlib.Path, dataset_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "out"
    untrained = RunDir(tmp_path / "untrained")
    shutil.copytree(run.path, untrained.path, ignore=shutil.ignore_patterns("checkpoints"))
    refuse(RunError, "holds no checkpoint", untrained.path, "--out", out)
    refuse(RunError, "is not a run directory", tmp_path, "--out", out)
    refuse(
        UsageError,
        "no export format 'tflite-int4'; did you mean 'tflite-int8'",
        run.path,
        "--out",
        out,
        "--formats",
        "tflite-int4",
    )
    refuse(
        UsageError, "--parity-images 499 is too few.*500 or more, or 0", run.path, "--out", out, "--parity-images", 499
    )
    refuse(UsageError, "--onnx-opset 19 is not.*14 to 18", run.path, "--out", out, "--onnx-opset", 19)
    refuse(UsageError, "the model name '../up' is not", run.path, "--out", out, "--name", "../up")
    refuse(ArtifactError, "holds an export already", run.path, "--out", export_dir)
    refuse(DataError, "no manifest.json", run.path, "--out", out, "--data", tmp_path)
    assert not out.exists()


def test_another_dataset_and_a_damaged_one_are_refused(
    run: RunDir, dataset_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    damaged = pathlib.Path(shutil.copytree(dataset_dir, tmp_path / "damaged"))
    shard = damaged / "validation-00000-of-00001.tfrecord"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(bytes(content))
    refuse(
        DataError,
        f"{shard.name} is damaged: record 0 at byte 0 fails its CRC-32C",
        run.path,
        "--out",
        tmp_path / "out",
        "--data",
        damaged,
    )
    manifest = Manifest.load(dataset_dir)
    manifest.model_copy(update={"class_names": CLASS_NAMES[::-1]}).save(damaged)
    refuse(
        DataError,
        "is not the dataset that the run was trained on",
        run.path,
        "--out",
        tmp_path / "out",
        "--data",
        damaged,
    )


def test_a_directory_that_is_no_export_is_not_verified(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a finished export.*trainer export RUN --out"):
        invoke("verify", tmp_path)


def test_latencies_are_measured_beside_the_model_of_the_run(run: RunDir, export_dir: pathlib.Path) -> None:
    import trainer.cli.bench_export

    bench = typer.Typer()
    bench.command()(trainer.cli.bench_export.bench_export)
    arguments = [str(export_dir), "--run", str(run.path), "--threads", "1", "--rounds", "2"]
    answer = json.loads(CliRunner().invoke(bench, [*arguments, "--json"], catch_exceptions=False).stdout)
    titles = ["model of the run", "saved_model", "saved_model (image_bytes)", "tflite-float32", "onnx"]
    assert [row["title"] for row in answer["rows"]] == titles
    assert all(len(row["relative"]) == 2 and min(row["relative"]) > 0 for row in answer["rows"])
    assert answer["rows"][0]["relative"] == [1, 1]
