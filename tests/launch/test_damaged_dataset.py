"""A damaged record ends a launch or an evaluation with one sentence; whole ones before it are used."""

import pathlib
import shutil

import numpy as np
import pytest

from tests import small_backbone
from trainer.cli.app import main
from trainer.data.dataset.manifest import Manifest, SplitName
from trainer.data.dataset.split_reader import SplitReader

pytestmark = pytest.mark.slow


def damage(dataset: pathlib.Path, split: SplitName, example: int) -> str:
    """Flip a bit of one record; return what the error says."""
    with SplitReader(dataset, Manifest.load(dataset), split) as reader:
        (shard,), (offset,), (length,) = reader.locate(np.array([example]))
        path = pathlib.Path(str(reader.paths[shard]))
    content = bytearray(path.read_bytes())
    content[offset + length // 2] ^= 1
    path.write_bytes(content)
    return f"the shard {path} is damaged: record {example} at byte {offset - 12} fails its CRC-32C"


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["trainer", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize(
    ("split", "settings"),
    [
        ("train", ["features.cache=off", "data.cache=off"]),
        ("train", ["features.cache=on", "data.cache=off"]),
        ("validation", ["features.cache=off"]),
    ],
    ids=["training", "features", "validation"],
)
def test_a_launch_names_the_damaged_record(
    digits: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    split: SplitName,
    settings: list[str],
) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(digits, dataset)
    sentence = damage(dataset, split, 50)
    status = run_command(
        monkeypatch, "launch", f"--data={dataset}", f"--run-dir={tmp_path / 'run'}", "--device=cpu",
        "--set=model.image_size_px=32", "--set=model.trainable=head", "--set=train.epochs=1", *small_backbone.OPTIONS,
        *(f"--set={setting}" for setting in settings),
    )  # fmt: skip
    stderr = capfd.readouterr().err
    assert status == 2
    assert sentence in stderr
    assert "Traceback" not in stderr
