"""Versions of a model: which are found, which one answers, and what a damaged one says."""

import pathlib
import shutil

import numpy as np
import pytest
from brightness_export import grey_pixels, jpeg

from serving.models.base_path import find_versions
from serving.models.model import Model
from serving.models.servable import State
from serving.protocol.status import Code, RequestError
from trainer.errors import ArtifactError


@pytest.fixture(scope="module")
def base_path(export_dir: pathlib.Path) -> pathlib.Path:
    return export_dir / "saved_model" / "brightness"


@pytest.fixture(scope="module")
def model(base_path: pathlib.Path) -> Model:
    model = Model(name="brightness", base_path=base_path)
    model.load()
    return model


def test_versions_are_directories_named_by_a_number(base_path: pathlib.Path) -> None:
    assert list(find_versions(base_path)) == [9, 10]


def test_the_newest_version_is_the_highest_number_not_the_last_name(model: Model) -> None:
    assert list(model.servables) == [10]
    assert model.find().version == 10


def test_a_version_goes_through_its_states(base_path: pathlib.Path) -> None:
    servable = Model(name="brightness", base_path=base_path).servables[10]
    assert servable.state is State.START
    servable.load()
    assert servable.state is State.AVAILABLE
    servable.unload()
    assert servable.state is State.END
    with pytest.raises(RequestError) as caught:
        servable.run("images", {"images": grey_pixels(1)})
    assert caught.value.code is Code.NOT_FOUND


def test_a_signature_runs_on_arrays(model: Model) -> None:
    outputs = model.find().run("images", {"images": grey_pixels(0, 255)})
    assert outputs["label"].tolist() == [b"dark", b"bright"]
    assert outputs["class_id"].dtype == np.int64
    assert outputs["probabilities"].dtype == np.float32
    images = np.array([jpeg(128)], object)
    assert model.find().run(None, {"image_bytes": images})["label"].tolist() == [b"medium"]


def test_the_graphs_refusal_is_told_without_its_nodes(model: Model) -> None:
    with pytest.raises(RequestError) as caught:
        model.find().run("unguarded", {"image_bytes": np.array([b"no image"], object)})
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message.startswith("Unknown image file format.")


@pytest.mark.parametrize("damaged", ["saved_model.pb", "variables/variables.index"])
def test_a_damaged_version_is_an_error_with_its_path(
    base_path: pathlib.Path, tmp_path: pathlib.Path, damaged: str
) -> None:
    shutil.copytree(base_path / "9", tmp_path / "m" / "1")
    file = tmp_path / "m" / "1" / damaged
    file.write_bytes(file.read_bytes()[:40])
    model = Model(name="m", base_path=tmp_path / "m")
    with pytest.raises(ArtifactError, match=r"could not load .*m/1: .+; export the model again"):
        model.load()
    assert model.servables[1].state is State.END
    assert not model.is_ready


def test_a_base_path_without_versions_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="holds no version of a SavedModel"):
        Model(name="m", base_path=tmp_path / "m")
    with pytest.raises(ArtifactError, match="holds no version of a SavedModel"):
        Model(name="m", base_path=tmp_path / "absent")
