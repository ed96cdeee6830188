"""Every command and every file that brings a name or a version asks the same rule and gives the same refusal."""

import json
import pathlib
import unicodedata
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from export.files.checksums import Checksums
from export.files.signature import Signature
from serving.protocol.status import RequestError
from serving.rest.rest_server import parse_call
from trainer.cli.app import app
from trainer.data.dataset.manifest import Manifest
from trainer.data.decode.geometry import Geometry
from trainer.errors import DataError, UsageError
from trainer.run.run_dir import RunDir


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, UsageError), result.output
    return str(result.exception)


@pytest.fixture
def export_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    """An export as far as it is looked into before a name or a version is."""
    directory = tmp_path / "export"
    (directory / "saved_model/digits/1").mkdir(parents=True)
    (directory / "saved_model/digits/1/saved_model.pb").touch()
    geometry = Geometry(image_size_px=8, resize="crop")
    Signature.of_classifier(model_name="digits", class_names=["a", "b"], geometry=geometry).save(directory)
    return directory


def test_a_model_name_is_refused_alike_by_every_command(export_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    refusals = {
        refusal("export", "RUN", "--out", tmp_path / "out", "--name", "a/b"),
        refusal("serve", export_dir, "--name", "a/b"),
        refusal("manifests", export_dir, "--out", tmp_path / "out", "--name", "a/b"),
    }
    assert len(refusals) == 1 and "the model name 'a/b' is not" in refusals.pop()


def test_a_version_is_refused_alike_by_every_command(tmp_path: pathlib.Path) -> None:
    for version in (0, -1, 2**63):
        refusals = {
            refusal("export", "RUN", "--out", tmp_path / "out", "--version", version),
            refusal("rollback", tmp_path / "root", "--to", version),
        }
        assert len(refusals) == 1 and f"the version {version} is out of range" in refusals.pop()


@pytest.mark.parametrize("version", [str(2**63), "9" * 5000], ids=["2^63", "5000 digits"])
def test_a_version_in_an_address_that_no_server_holds_is_a_bad_request(version: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_call("GET", f"/v1/models/digits/versions/{version}")
    assert refused.value.http_status == 400


def test_a_directory_whose_number_no_server_holds_is_no_version(export_dir: pathlib.Path) -> None:
    (export_dir / "saved_model/digits/1").rename(export_dir / f"saved_model/digits/{2**63}")
    assert "holds no version of a SavedModel" in refusal("serve", export_dir)


def put_into(path: pathlib.Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def in_signature(directory: pathlib.Path, names: list[str]) -> None:
    geometry = Geometry(image_size_px=8, resize="crop")
    signature = Signature.of_classifier(model_name="digits", class_names=["a", "b"], geometry=geometry)
    put_into(directory / "signature.json", {**signature.model_dump(mode="json"), "class_names": names})
    Signature.load(directory)


def in_run(directory: pathlib.Path, names: list[str]) -> None:
    texts = dict.fromkeys(("name", "identity", "dataset_dir", "dataset_hash", "weights", "precision"), "x")
    numbers = {"num_train_examples": 1, "image_size_px": 8}
    put_into(directory / "run.json", {**texts, **numbers, "batch_norm": "frozen", "class_names": names})
    RunDir(directory).info()


def in_manifest(directory: pathlib.Path, names: list[str]) -> None:
    put_into(
        directory / "manifest.json",
        {"schema_version": 2, "name": "x", "source": "x", "seed": 0, "splits": {}, "class_names": names},
    )
    Manifest.load(directory)


@pytest.mark.parametrize("read", [in_signature, in_run, in_manifest])
def test_a_file_from_elsewhere_cannot_bring_a_class_name_that_shifts_the_lines_of_another(
    read: Callable[[pathlib.Path, list[str]], None], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UsageError, match=r"the class name 'ro\\u2028se' has a character that is not text \(U\+2028"):
        read(tmp_path, ["ro\u2028se", "b"])
    with pytest.raises(UsageError, match="two classes are called 'b'"):
        read(tmp_path, ["b", "b"])


def test_labels_of_an_export_are_one_a_line_for_every_reader() -> None:
    names = ["café", "猫", "a\u2009b", "tench, Tinca tinca", "👩\u200d🔬"]
    geometry = Geometry(image_size_px=8, resize="crop")
    text = Signature.of_classifier(model_name="digits", class_names=names, geometry=geometry).labels_text()
    assert text.splitlines() == text.split("\n")[:-1] == text.encode().decode().split("\n")[:-1] == names


def test_a_changed_provenance_is_no_way_out_of_the_root(export_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """`trainer publish` makes directories by the numbers and names in these files."""
    Checksums.of(export_dir).save(export_dir)
    for change in ({"version": 2**63}, {"version": 0}, {"model_name": "../../elsewhere"}):
        put_into(export_dir / "provenance.json", {"schema_version": 1, **change})
        assert "provenance.json is not of schema version 1" in refusal("publish", export_dir, tmp_path / "root")


def prepared_classes(source: pathlib.Path, out: pathlib.Path, *options: str) -> list[str]:
    result = CliRunner().invoke(app, ["prepare", str(source), "--out", str(out), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Manifest.load(out).class_names


def images(*folders: pathlib.Path) -> None:
    from PIL import Image

    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for shade in range(3):
            Image.new("L", (4, 4), 40 * number + shade).save(folder / f"{shade}.png")


def test_an_accent_apart_is_the_same_class_when_prepared_and_excluded(tmp_path: pathlib.Path) -> None:
    apart = unicodedata.normalize("NFD", "café")
    images(tmp_path / "photos" / apart, tmp_path / "photos/tea", tmp_path / "photos/milk")
    assert prepared_classes(tmp_path / "photos", tmp_path / "all") == ["café", "milk", "tea"]
    assert prepared_classes(tmp_path / "photos", tmp_path / "two", "--exclude", "café") == ["milk", "tea"]


@pytest.mark.parametrize("kind", ["folder", "csv", "jsonl", "zip"])
def test_two_spellings_of_one_class_are_refused_whatever_the_source(kind: str, tmp_path: pathlib.Path) -> None:
    photos, apart = tmp_path / "photos", unicodedata.normalize("NFD", "café")
    images(photos / "café", photos / apart)
    source = photos
    if kind == "zip":
        import shutil

        source = pathlib.Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    elif kind != "folder":
        rows = [(f"photos/{name}/{shade}.png", name) for name in ("café", apart) for shade in range(3)]
        source = tmp_path / f"list.{kind}"
        csv = "\n".join(["path,label", *(f"{path},{label}" for path, label in rows)])
        jsonl = "\n".join(json.dumps({"path": path, "label": label}) for path, label in rows)
        source.write_text(csv if kind == "csv" else jsonl)
    with pytest.raises(DataError, match=r"the class 'cafe?.' has two Unicode spellings"):
        CliRunner().invoke(app, ["prepare", str(source), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert not (tmp_path / "out").exists()
