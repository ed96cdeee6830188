"""What `launch` takes for images: the meaning of names, folders of its own, and who of several prepares them."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import time
from typing import Any

import numpy as np
import pytest
from launching import command
from PIL import Image

from trainer.cli.app import main
from trainer.config.config import load_config
from trainer.data.preparation import prepare
from trainer.data.preparation.auto_prepare import prepare_beside
from trainer.data.sources import open_source
from trainer.errors import DataError
from trainer.launch.plan_run import find_dataset, plan_run
from trainer.launch.run_session import RunSession
from trainer.run.run_dir import RunDir

pytestmark = pytest.mark.slow

SMALL = ["distribute.device=cpu", "model.image_size_px=32", "model.trainable=head", "train.epochs=1"]


@pytest.fixture
def photos(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder of two classes, which is the current directory's child."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 256, [20, 30, 3], dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def find(text: str) -> pathlib.Path:
    found = find_dataset(load_config(overrides=[*SMALL, f"data.path={text}"]), lambda _: None)
    assert isinstance(found, pathlib.Path)
    return found


def exit_status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["trainer", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_in_a_folder_of_photos_the_same_command_twice_trains_on_the_photos_both_times(
    photos: pathlib.Path, digits: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    config, notes = load_config(overrides=[*SMALL, "data.path=."]), list[str]()
    first = plan_run(config, run_dir=None, resume=True, note=notes.append)
    with RunSession.open(first, notes.append) as session:
        first = session.planned
        # One that has just begun has not written anything of its own yet.
        assert open_source(".").class_names == ["cat", "dog"]
        first.run.create(first.config, first.plan.run_info(first.config, "first"))
    shutil.copytree(digits, photos / "a dataset")
    for suffix in (".cache", ".features"):
        (photos / f"a dataset{suffix}" / "train").mkdir(parents=True)
        (photos / f"a dataset{suffix}" / ".lock").touch()
    second = plan_run(config, run_dir=None, resume=True, note=notes.append)
    assert second.plan == first.plan and second.run.path == first.run.path
    assert first.plan.data.class_names == ["cat", "dog"]
    assert [message for message in notes if "prepared from" in message and "before" in message]
    (photos / "cat" / "10.png").write_bytes((photos / "cat" / "9.png").read_bytes())
    plan_run(config, run_dir=None, resume=True, note=notes.append)
    told = [message for message in notes if message.endswith("is left out: it was written by trainer")]
    assert {pathlib.Path(message.partition(" is left")[0]).name for message in told} == {
        "runs", "a dataset", "a dataset.cache", "a dataset.features"
    }  # fmt: skip


def test_a_class_is_a_class_whatever_it_is_called(photos: pathlib.Path) -> None:
    for name in ("runs", "cells.cache", "manifest"):
        shutil.copytree(photos / "cat", photos / name)
    (photos / "manifest" / "manifest.json").write_text('{"of": "something else"}', encoding="utf-8")
    (photos / "manifest" / "run.json").write_text("not JSON", encoding="utf-8")
    assert open_source("photos").class_names == ["cat", "cells.cache", "dog", "manifest", "runs"]


def test_a_name_that_is_a_built_in_source_and_a_folder_is_an_error_that_says_how_to_write_each(
    photos: pathlib.Path, digits: pathlib.Path
) -> None:
    photos.rename("digits")
    for ask in (open_source, find):
        with pytest.raises(DataError, match=r"and there is .*/digits too; write \./digits .* or builtin:digits for"):
            ask("digits")
    assert open_source("./digits").class_names == ["cat", "dog"]
    assert find("./digits").name == "digits.trainer-dataset"
    assert len(open_source("builtin:digits").class_names or ()) == 10
    shutil.rmtree("digits")
    with pytest.raises(DataError, match=r"is a source of images, .*: trainer prepare digits --out DATASET"):
        find("digits")
    with pytest.raises(DataError, match=r"is a source of images, .*: trainer prepare builtin:digits --out DATASET"):
        find("builtin:digits")
    with pytest.raises(DataError, match="'builtin:photos' does not exist"):
        open_source("builtin:photos")
    # A dataset is no source, and the built-in source no dataset: nothing is ambiguous.
    shutil.copytree(digits, "digits")
    assert find("digits") == pathlib.Path("digits")
    assert len(open_source("digits").class_names or ()) == 10


def test_of_several_processes_one_prepares_a_raw_folder_and_the_others_wait(
    photos: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    def prepare_when_the_others_wait(*arguments: Any, **options: Any) -> Any:
        while sum(message.startswith("waiting for process ") for message in notes) < 3:
            time.sleep(0.01)
        return prepare_dataset(*arguments, **options)

    prepare_dataset = prepare.prepare_dataset
    monkeypatch.setattr(prepare, "prepare_dataset", prepare_when_the_others_wait)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: prepare_beside(photos, note=notes.append), range(4)))
    assert set(found) == {photos.with_name("photos.trainer-dataset")}
    assert sum(message.startswith("preparing ") for message in notes) == 1
    assert sum(message.startswith("using ") for message in notes) == 3
    waiting = [message for message in notes if message.startswith("waiting for process ")]
    assert all(f"process {os.getpid()} on " in message for message in waiting) and len(waiting) == 3
    assert {path.name for path in photos.parent.iterdir()} == {"photos", "photos.trainer-dataset"}


@pytest.mark.parametrize("more", [[], ["--json"], ["--recipe=auto"]], ids=lambda more: " ".join(more) or "table")
def test_a_dry_run_of_raw_photos_says_what_would_be_prepared_and_writes_nothing(
    photos: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], more: list[str]
) -> None:
    before = sorted(photos.parent.rglob("*"))
    assert exit_status(monkeypatch, "launch", "--data=photos", "--device=cpu", "--dry-run", *more) == 0
    out = capfd.readouterr().out
    assert sorted(photos.parent.rglob("*")) == before
    if "--json" in more:
        assert json.loads(out)["would_prepare"] == {
            "source": str(photos),
            "dataset_dir": f"{photos}.trainer-dataset",
            "class_names": ["cat", "dog"],
            "num_files": 20,
        }
    else:
        assert f"would prepare  {photos}: 20 files of 2 classes" in out
        assert f"trainer prepare {photos} --out {photos}-dataset" in out


def test_a_dry_run_of_prepared_photos_is_a_plan_and_writes_nothing(
    photos: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    find("photos")
    before = sorted(photos.parent.rglob("*"))
    settings = [f"--set={setting}" for setting in SMALL]
    assert exit_status(monkeypatch, "launch", "--data=photos", "--dry-run", "--json", *settings) == 0
    assert json.loads(capfd.readouterr().out)["class_names"] == ["cat", "dog"]
    assert sorted(photos.parent.rglob("*")) == before


def test_where_the_locale_is_ascii_text_is_still_utf_8(photos: pathlib.Path) -> None:
    photos.rename("Fotos für Übungen")
    pathlib.Path("Fotos für Übungen", "cat").rename("Fotos für Übungen/Kätzchen")
    pathlib.Path("Rezept für alle.yaml").write_text(
        "# Größer\ndata: {path: Fotos für Übungen-Daten}\n"
        "model: {image_size_px: 32, trainable: head}\ntrain: {epochs: 1}\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            command(*arguments), env=environment, capture_output=True, check=False, timeout=600, cwd=pathlib.Path()
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("utf-8")

    shown = run("prepare", "Fotos für Übungen", "--out=Fotos für Übungen-Daten")
    assert "Kätzchen" in shown and "Fotos für Übungen-Daten" in shown and "─" in shown
    document = json.loads(
        run("launch", "--config=Rezept für alle.yaml", "--run-dir=Läufe/größer", "--device=cpu", "--json")
    )
    assert document["class_names"] == ["Kätzchen", "dog"] and document["run_dir"] == "Läufe/größer"
    trained = RunDir("Läufe/größer")
    assert trained.config().data.path == "Fotos für Übungen-Daten" and trained.info().name == "größer"
