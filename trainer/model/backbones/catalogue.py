"""Read the facts about every backbone that are known without building it, from `backbones.json` beside this module.

`scripts/measure_backbones.py` writes the file; a test measures a few of its entries again. Nothing here needs Keras.
"""

import importlib.util
import os
import pathlib
from typing import Final, Literal

import pydantic

SCHEMA_VERSION: Final = 1
FILE = pathlib.Path(__file__).with_name("backbones.json")

Availability = Literal["bundled", "cached", "downloadable", "not installed"]


class BackboneFacts(pydantic.BaseModel):
    """A backbone without a head, at the size of the images it was trained on."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    image_size_px: int
    num_parameters: int
    multiply_adds: int
    num_blocks: int
    # The file that Keras downloads for the ImageNet weights, or the Python package that holds them.
    weights_file: str | None = None
    weights_package: str | None = None

    @property
    def weights(self) -> Availability:
        """The way to its pretrained weights on this machine."""
        if self.weights_package:
            return "bundled" if importlib.util.find_spec(self.weights_package) else "not installed"
        return "cached" if (_keras_models_dir() / str(self.weights_file)).is_file() else "downloadable"


class Catalogue(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    backbones: list[BackboneFacts]


def load_catalogue() -> list[BackboneFacts]:
    """Return every backbone of the registry, by name."""
    return Catalogue.model_validate_json(FILE.read_bytes()).backbones


def _keras_models_dir() -> pathlib.Path:
    """Return the folder where Keras keeps what it has downloaded."""
    home = os.environ.get("KERAS_HOME")
    return (pathlib.Path(home) if home else pathlib.Path.home() / ".keras") / "models"
