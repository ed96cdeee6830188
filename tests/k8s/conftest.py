"""The trees under k8s/, rendered by the real kubectl."""

import importlib.resources
import pathlib
from typing import Any

import pytest

from export.files.signature import Signature
from serving.k8s.manifests import find_kubectl, render
from trainer.data.decode.geometry import Geometry


@pytest.fixture(scope="session")
def kubectl() -> str:
    found = find_kubectl()
    assert found is not None, "kubectl is missing: install the extra `dev`"
    return found


@pytest.fixture(scope="session")
def trees(kubectl: str) -> dict[str, list[dict[str, Any]]]:
    """The objects of every tree by its name."""
    root = pathlib.Path(str(importlib.resources.files("k8s")))
    names = sorted(path.parent.name for path in root.glob("*/kustomization.yaml"))
    return {name: render(root / name, kubectl) for name in names}


@pytest.fixture
def export_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    """An export as far as manifests look into it: its signature, and versions 3 and 12 of a SavedModel."""
    directory = tmp_path / "my export"
    for version in ("3", "12"):
        (directory / "saved_model" / "Flower_Model.v2" / version).mkdir(parents=True)
        (directory / "saved_model" / "Flower_Model.v2" / version / "saved_model.pb").touch()
    Signature.of_classifier(
        model_name="Flower_Model.v2",
        class_names=["daisy", "rose"],
        geometry=Geometry(image_size_px=64, resize="crop"),
    ).save(directory)
    return directory
