"""Datasets of TensorFlow Datasets, real ones: built on this disk by its own code, and read by name."""

import io
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from trainer.console.task_progress import show_nothing
from trainer.data.sources import Source, open_source
from trainer.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full([20, 30, 3], 40 * shade, np.uint8)).save(buffer, "JPEG", quality=70)
    return buffer.getvalue()


class TrainerShades(tfds.core.GeneratorBasedBuilder):
    """A few grey pictures, with whatever features and splits a test asks for."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="grey"), tfds.core.BuilderConfig(name="several"))
    splits_and_counts: ClassVar = {"train": 5, "validation": 2, "test": 3}

    def _info(self) -> Any:
        label = tfds.features.ClassLabel(names=["dark", "Bright", "medium"])
        is_several = self.builder_config.name == "several"
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "photo": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "thumbnail": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.Sequence(label) if is_several else label,
                    "number": tfds.features.Scalar(np.int64),
                }
            ),
            supervised_keys=("photo", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split, count) for split, count in self.splits_and_counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        is_several = self.builder_config.name == "several"
        for i in range(count):
            label: Any = [i % 3, 1] if is_several else i % 3
            if split == "unlabelled" or (split == "broken" and i == 1):
                label = [] if is_several else -1
            thumbnail = np.zeros([2, 2, 3], np.uint8)
            example = {"photo": io.BytesIO(jpeg(i)), "thumbnail": thumbnail, "label": label, "number": i}
            yield f"{split}{i}", example


class TrainerObjects(tfds.core.GeneratorBasedBuilder):
    """Features as Pascal VOC has them: labels twice, and no word on which are meant."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        labels = tfds.features.Sequence(tfds.features.ClassLabel(names=["cat", "dog"]))
        features = {"image": tfds.features.Image(), "labels": labels, "labels_no_difficult": labels}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "a", {"image": io.BytesIO(jpeg(1)), "labels": [0, 1], "labels_no_difficult": [1]}


class TrainerSounds(tfds.core.GeneratorBasedBuilder):
    """Nothing to see here."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {}

    def _generate_examples(self) -> Iterator[Any]:
        yield from ()


@pytest.fixture(autouse=True)
def data_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


@pytest.fixture
def workspace(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "workspace"


def staged(text: str, workspace: pathlib.Path) -> Source:
    source = open_source(f"tfds:{text}")
    source.stage(workspace, show_nothing)
    return source


def test_of_several_features_with_labels_the_one_that_is_called_so_is_meant(workspace: pathlib.Path) -> None:
    (candidate,) = staged("trainer_objects", workspace).candidates()
    assert candidate.class_names == ("cat", "dog")


def test_examples_come_with_their_bytes_labels_and_splits(
    workspace: pathlib.Path, data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = staged("trainer_shades/grey:1.2.0", workspace)
    assert capsys.readouterr().out == ""  # where `--json` writes its answer
    assert (source.name, source.class_names) == ("trainer_shades-grey", ["dark", "Bright", "medium"])
    candidates = {c.filename: c for c in source.candidates()}
    assert [(c.split, n.split("/")[0]) for n, c in candidates.items()].count((None, "train")) == 5
    assert {(n.split("/")[0], c.split) for n, c in candidates.items()} == {
        ("train", None),
        ("validation", "validation"),
        ("test", "test"),
    }
    assert len(candidates) == 10
    # The order of TensorFlow Datasets is its own; which bytes have which label is not.
    shades = {jpeg(i): ("dark", "Bright", "medium")[i % 3] for i in range(5)}
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        images = [(source.read(c), c.class_names) for n, c in candidates.items() if n.startswith(f"{split}/")]
        assert sorted(images) == sorted((jpeg(i), (shades[jpeg(i)],)) for i in range(count))
    assert (data_dir / "trainer_shades/grey/1.2.0").is_dir()


def test_several_labels_are_kept_each_once(workspace: pathlib.Path) -> None:
    source = staged("trainer_shades/several", workspace)
    labels = {source.read(c): c.class_names for c in source.candidates() if c.filename.startswith("test/")}
    assert labels == {jpeg(0): ("dark", "Bright"), jpeg(1): ("Bright",), jpeg(2): ("medium", "Bright")}


def test_what_is_prepared_needs_neither_its_code_nor_a_network(
    workspace: pathlib.Path, data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged("trainer_shades/grey", workspace)
    (data_dir / "trainer_shades").rename(data_dir / "shades_from_elsewhere")
    for info in data_dir.rglob("dataset_info.json"):
        info.write_text(info.read_text().replace("trainer_shades", "shades_from_elsewhere"))
    for record in data_dir.rglob("*.tfrecord*"):
        record.rename(record.with_name(record.name.replace("trainer_shades", "shades_from_elsewhere")))
    monkeypatch.setattr(socket, "getaddrinfo", None)
    source = staged("shades_from_elsewhere/grey", workspace)
    assert sorted(source.read(c) for c in source.candidates() if c.split == "test") == sorted(map(jpeg, range(3)))


def test_what_is_staged_is_used_again(workspace: pathlib.Path) -> None:
    first = [(c, c.locator) for c in staged("trainer_shades/grey", workspace).candidates()]
    before = {p.name: p.stat().st_mtime_ns for p in workspace.iterdir()}
    again = staged("trainer_shades/grey", workspace)
    assert [(c, c.locator) for c in again.candidates()] == first
    assert {p.name: p.stat().st_mtime_ns for p in workspace.iterdir()} == before
    assert sorted(before) == ["tfds.index", "tfds.spool"]
    other = staged("trainer_shades/several", workspace)
    assert {len(c.class_names) for c in other.candidates()} == {1, 2}


@pytest.mark.parametrize("config", ["grey", "several"])
def test_a_split_without_labels_is_left_out(
    workspace: pathlib.Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    monkeypatch.setattr(TrainerShades, "splits_and_counts", {"train": 3, "unlabelled": 4, "extra": 2})
    source = staged(f"trainer_shades/{config}", workspace)
    assert sorted((c.filename.split("/")[0], c.split) for c in source.candidates()) == (
        [("extra", None)] * 2 + [("train", None)] * 3
    )


def test_a_split_with_some_labels_is_an_error(workspace: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainerShades, "splits_and_counts", {"broken": 3})
    with pytest.raises(DataError, match="some examples of broken have a label and others have none"):
        staged("trainer_shades/grey", workspace)
    monkeypatch.setattr(TrainerShades, "splits_and_counts", {"unlabelled": 3})
    with pytest.raises(DataError, match="trainer_shades/several has no example with a label"):
        staged("trainer_shades/several", workspace)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer_shadez", r"knows no dataset 'trainer_shadez'; did you mean tfds:trainer_shades\?"),
        ("trainer_shades/blue", "cannot open 'trainer_shades/blue'"),
        ("trainer_shades/grey:9.9.9", "cannot open 'trainer_shades/grey:9.9.9'"),
        ("no such name", "cannot open 'no such name'"),
        ("../../etc", "cannot open|knows no dataset"),
        ("trainer_sounds", "has the features text, label, of which 0 are images and 1 labels; expected one of each"),
    ],
)
def test_what_cannot_be_opened_says_why(workspace: pathlib.Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        staged(text, workspace)


def test_without_a_network_the_error_comes_at_once_and_says_what_to_do(
    workspace: pathlib.Path, data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(DataError) as caught:
        staged("cats_vs_dogs", workspace)
    assert "cannot get cats_vs_dogs" in str(caught.value)
    assert f"copy what another machine prepared to {data_dir / 'cats_vs_dogs'}" in str(caught.value)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow_datasets")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(DataError, match=r"needs the package tensorflow-datasets.*install it with: scripts/setup tfds"):
        open_source("tfds:mnist")


def test_a_source_without_a_name_is_refused() -> None:
    with pytest.raises(DataError, match="names no dataset; write tfds:NAME"):
        open_source("tfds:")
