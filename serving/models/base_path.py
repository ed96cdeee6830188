"""Find SavedModels: the base path of an export or of a plain model, and its versions.

A TensorFlow Serving base path holds one numbered directory for each version: `saved_model/digits/1/`. Nothing here
needs TensorFlow.
"""

import functools
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
# The link of `trainer publish` to the current export.
_CURRENT = "current"


class ModelFiles(NamedTuple):
    """A model that can be served.

    Attributes:
        base_path: a base path, or a single version.
        model_name: the default name.
        is_export: whether it is an export, for which `trainer manifests` works.
    """

    base_path: pathlib.Path
    model_name: str
    is_export: bool


def find_model(path: pathlib.Path) -> ModelFiles:
    """Find the model in `path`: an export, a base path of numbered versions, or a single SavedModel.

    A plain model is named after its directory, as in TensorFlow Serving's paths.
    Raises ArtifactError if it is none of them, with advice for what it is instead.
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
    """Return the base path of an export with this signature; the float32 one if there is one."""
    places = [export_dir / wanted.name / signature.model_name for wanted in SAVED_MODELS]
    return next((place for place in places if place.is_dir()), places[0])


def export_of(version: pathlib.Path) -> pathlib.Path | None:
    """Return the export in which a version lies, or None for one of a plain base path."""
    export_dir = version.resolve().parent.parent.parent
    return export_dir if (export_dir / SIGNATURE_FILE).is_file() else None


@functools.lru_cache(maxsize=64)
def find_class_names(version: pathlib.Path) -> tuple[str, ...]:
    """Return the names of the classes of a version that lies in an export, and nothing for others."""
    export_dir = export_of(version)
    return () if export_dir is None else tuple(Signature.load(export_dir).class_names)


def find_versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the version directories of a base path by number, ascending; other names are ignored.

    A single SavedModel is its only version: the number in its name, or 1.
    Raises ArtifactError if there is no version.
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


def poll_versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the version directories that are there now, by number, ascending, with all links resolved; perhaps none.

    The paths stay those of the same files when a link such as `ROOT/current` moves on.
    Raises OSError if the base path is gone or cannot be read, which says nothing about its versions.
    """
    resolved = base_path.resolve(strict=True)
    if (resolved / GRAPH_FILE).is_file():
        return find_versions(resolved)
    next(resolved.iterdir(), None)
    return _list_versions(resolved)


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
        return f"{path} holds several models and is not a base path; serve one with: trainer serve {_quote(inside[0])}"
    return (
        f"{path} is not an export (it holds no {SIGNATURE_FILE}), not a SavedModel (no {GRAPH_FILE}) and not a base "
        "path (no directory named by a number with a SavedModel in it); make an export with: trainer export RUN --out "
        "EXPORT"
    )


def _quote(path: pathlib.Path) -> str:
    return shlex.quote(str(path))
