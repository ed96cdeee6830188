"""`trainer bench input` measures every stage, and names the one that limits."""

import json
import pathlib

import pytest
from pixel_sets import encode, photographs, write_dataset

from trainer.cli.app import main
from trainer.data.input.input_benchmark import Rates, name_limit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    encoded = [encode(image) for image in photographs(20, width=60, height=40)]
    return write_dataset(tmp_path_factory.mktemp("datasets") / "photographs", encoded)


def run_bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["trainer", "bench", "input", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def quick(dataset: pathlib.Path) -> list[str]:
    return [str(dataset), "--secs", "0.05", "--set", "model.image_size_px=16", "--set", "train.global_batch_size=8"]


def test_every_stage_has_a_rate_for_each_number_of_readers(
    dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--readers", "1", "--readers", "3", "--set", "augment.preset=medium", "--json"]
    assert run_bench(monkeypatch, *quick(dataset), *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert [rates["num_readers"] for rates in report["rates"]] == [1, 3]
    assert all(rates[stage] > 0 for rates in report["rates"] for stage in ("read", "decode", "pipeline"))
    assert report["ceiling"] > 0 and not report["is_cached"]
    assert report["limiting_stage"] in ("read", "decode", "batch")
    assert not dataset.with_name(dataset.name + ".cache").exists()


def test_a_person_gets_a_table_and_the_stage_by_name(
    dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(monkeypatch, *quick(dataset), "--readers", "2", "--set", "data.cache=memory") == 0
    printed = capsys.readouterr().out
    assert "whole pipeline" in printed and "limited by gather" in printed


def test_what_is_no_dataset_is_wrong_usage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(monkeypatch, str(tmp_path)) == 2
    assert "is not a prepared dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((5000, 950, 930), "decode"),
        ((500, 480, 470), "read"),
        ((5000, 900, 600), "batch"),
        ((5000, 700, 690), "decode"),
    ],
)
def test_the_stage_that_limits_follows_from_the_rates(rates: tuple[float, float, float], expected: str) -> None:
    read, decode, pipeline = rates
    named, explanation = name_limit(
        Rates(num_readers=2, read=read, decode=decode, pipeline=pipeline), 1000, is_cached=False
    )
    assert named == expected
    assert explanation
