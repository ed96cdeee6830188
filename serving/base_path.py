"""Where SavedModels lie: the base path of an export or of a plain model, and the versions under it.

A TensorFlow Serving base path holds one directory a version, named by its number: `saved_model/digits/1/`. Nothing here
needs TensorFlow.
"""

import pathlib
import shlex
from typing import NamedTuple

from export.files.formats import SAVED_MODELS
from export.files.signature import FILE_NAME as SIGNATURE_FILE
from export.files.signature import Signature
from trainer.errors import ArtifactError
from trainer.run.run_dir import RunDir
from trainer.system.names import parse_version

GRAPH_FILE = "saved_model.pb"
# `trainer publish` points this at the export that is current.
_CURRENT = "current"


class ModelFiles(NamedTuple):
    """What can be served: a base path (or one version by itself), the name that its model has by default, and whether
    it is an export, which `trainer manifests` brings into a cluster.
    """

    base_path: pathlib.Path
    model_name: str
    is_export: bool


def find_model(path: pathlib.Path) -> ModelFiles:
    """Finds the model in `path`: an export, a base path of numbered versions, or one SavedModel by itself.

    A plain model is called after its directory, as TensorFlow Serving's paths have it.
    Raises ArtifactError: it is none of them; the advice is for what it is instead.
    """
    if (path / SIGNATURE_FILE).is_file():
        signature = Signature.load(path)
        base_path = base_path_of(path, signature)
        find_versions(base_path)
        return ModelFiles(base_path, signature.model_name, is_export=True)
    if (path / GRAPH_FILE).is_file():
        resolved = path.resolve()
        directory = resolved.parent if parse_version(resolved.name) is not None else resolved
        return ModelFiles(path, directory.name, is_export=False)
    if _list_versions(path):
        return ModelFiles(path, path.resolve().name, is_export=False)
    raise ArtifactError(_what_instead(path))


def base_path_of(export_dir: pathlib.Path, signature: Signature) -> pathlib.Path:
    """The base path of an export with this signature: in float32 where it holds that."""
    places = [export_dir / wanted.name / signature.model_name for wanted in SAVED_MODELS]
    return next((place for place in places if place.is_dir()), places[0])


def find_versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """The version directories of a base path, by number, lowest first; what is not named by a number is none.

    A SavedModel by itself is its only version: of the number that it is named by, otherwise 1.
    Raises ArtifactError: there is no version.
    """
    if (base_path / GRAPH_FILE).is_file():
        version = parse_version(base_path.resolve().name)
        return {1 if version is None else version: base_path}
    found = _list_versions(base_path)
    if not found:
        raise ArtifactError(
            f"{base_path} holds no version of a SavedModel (a directory named by a number with a {GRAPH_FILE} in it); "
            "export the model again with: trainer export RUN --out EXPORT"
        )
    return found


def _list_versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    candidates = list(base_path.iterdir()) if base_path.is_dir() else []
    named = ((parse_version(path.name), path) for path in candidates)
    found = {version: path for version, path in named if version is not None and (path / GRAPH_FILE).is_file()}
    return dict(sorted(found.items()))


def _what_instead(path: pathlib.Path) -> str:
    if not path.exists():
        return f"{path} does not exist; make an export with: trainer export RUN --out EXPORT"
    if RunDir(path).exists():
        return f"{path} is a run and not an export; export it with: trainer export {_quote(path)} --out EXPORT"
    if (path / _CURRENT / SIGNATURE_FILE).is_file():
        return f"{path} holds published exports; serve the current one with: trainer serve {_quote(path / _CURRENT)}"
    inside = sorted(child for child in path.iterdir() if _list_versions(child)) if path.is_dir() else []
    if inside:
        return f"{path} holds models and is no base path of one; serve one with: trainer serve {_quote(inside[0])}"
    return (
        f"{path} is not an export (it holds no {SIGNATURE_FILE}), not a SavedModel (no {GRAPH_FILE}) and not a base "
        "path (no directory named by a number with a SavedModel in it); make an export with: trainer export RUN --out "
        "EXPORT"
    )


def _quote(path: pathlib.Path) -> str:
    return shlex.quote(str(path))
