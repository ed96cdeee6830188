"""Where the SavedModel of an export lies: its TensorFlow Serving base path and the versions under it.

A base path holds one directory a version, named by its number: `saved_model/digits/1/`. Nothing here needs
TensorFlow.
"""

import pathlib

from export.formats import SAVED_MODELS
from export.signature import Signature
from trainer.errors import ArtifactError
from trainer.system.names import parse_version

GRAPH_FILE = "saved_model.pb"


def base_path_of(export_dir: pathlib.Path, signature: Signature) -> pathlib.Path:
    """The base path of an export with this signature: in float32 where it holds that."""
    places = [export_dir / wanted.name / signature.model_name for wanted in SAVED_MODELS]
    return next((place for place in places if place.is_dir()), places[0])


def find_versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """The version directories of a base path, by number, lowest first; what is not named by a number is none.

    Raises ArtifactError: there is no version.
    """
    candidates = list(base_path.iterdir()) if base_path.is_dir() else []
    named = ((parse_version(path.name), path) for path in candidates)
    found = {version: path for version, path in named if version is not None and (path / GRAPH_FILE).is_file()}
    if not found:
        raise ArtifactError(
            f"{base_path} holds no version of a SavedModel (a directory named by a number with a {GRAPH_FILE} in it); "
            "export the model again with: trainer export RUN --out EXPORT"
        )
    return dict(sorted(found.items()))
