"""`trainer bench export`: every artifact in its own runtime and the model of the run, in turns."""

import json
import os
import pathlib
import shutil
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import trainer.cli.bench_export
from export.documents.model_card import FILE_NAME as CARD
from export.files.checksums import Checksums
from export.files.latency import LatencyReport
from export.files.parity import size_on_disk
from trainer.errors import ArtifactError, ParityError, RunError, UsageError
from trainer.run.run_dir import RunDir, RunInfo

app = typer.Typer()
app.command()(trainer.cli.bench_export.bench_export)
TITLES = ["saved_model", "saved_model (image_bytes)", "tflite-float32", "tflite-int8", "onnx"]


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def measured(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, LatencyReport]:
    """A copy of the export with recorded figures, and what the command answered."""
    directory = pathlib.Path(shutil.copytree(exported.directory, tmp_path_factory.mktemp("bench") / "digits"))
    answer = invoke(directory, "--threads", 1, "--rounds", 3, "--record", "--json")
    return directory, LatencyReport.model_validate(json.loads(answer))


def test_every_way_to_call_an_artifact_is_measured(measured: tuple[pathlib.Path, LatencyReport]) -> None:
    directory, report = measured
    assert {row.title for row in report.rows} >= set(TITLES)
    for row in report.rows:
        assert row.path is not None and row.num_bytes == size_on_disk(directory / row.path)
        assert row.num_threads == 1 and len(row.ms) == 3 and min(row.ms) > 0
        assert row.relative is None


def test_recorded_figures_are_part_of_the_export(measured: tuple[pathlib.Path, LatencyReport]) -> None:
    directory, report = measured
    assert LatencyReport.load(directory) == report
    card = (directory / CARD).read_text()
    assert f"| onnx | 1 | {next(r.median_ms for r in report.rows if r.title == 'onnx'):.2f} |" in card
    assert "Not measured" not in card and "## Limits" in card
    Checksums.load(directory).verify(directory)


def test_recording_does_not_cover_up_what_else_was_changed(
    measured: tuple[pathlib.Path, LatencyReport], tmp_path: pathlib.Path
) -> None:
    from export.gate.measure_latency import record_latency

    changed = pathlib.Path(shutil.copytree(measured[0], tmp_path / "changed"))
    (changed / "labels.txt").write_text("nothing\n")
    record_latency(changed, measured[1])
    with pytest.raises(ParityError, match=r"labels\.txt was changed"):
        Checksums.load(changed).verify(changed)


def test_recording_twice_leaves_the_last_figures(
    measured: tuple[pathlib.Path, LatencyReport], tmp_path: pathlib.Path
) -> None:
    from export.gate.measure_latency import record_latency

    again = pathlib.Path(shutil.copytree(measured[0], tmp_path / "again"))
    report = measured[1].model_copy(update={"cpu": "another processor"})
    record_latency(again, report)
    card = (again / CARD).read_text()
    assert card.count("relative to the model") == 1 and "another processor" in card


def test_what_cannot_be_measured_is_refused_before_anything_runs(exported: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="is not a finished export"):
        invoke(tmp_path)
    with pytest.raises(UsageError, match=r"is more than the \d+ available cores"):
        invoke(exported.directory, "--threads", len(os.sched_getaffinity(0)) + 1)
    other = RunDir(tmp_path / "run")
    other.path.mkdir()
    info = RunInfo(
        name="other",
        identity="ef" * 32,
        dataset_dir="d",
        dataset_hash="00" * 32,
        class_names=["a", "b"],
        num_train_examples=1,
        image_size_px=8,
        weights="none",
        precision="float32",
        batch_norm="frozen",
    )
    other.info_file.write_text(info.model_dump_json())
    with pytest.raises(RunError, match="is an export of another run"):
        invoke(exported.directory, "--run", other.path)
