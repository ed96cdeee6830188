"""The base of the JSON files of an export, and their reader, with one error each for missing and malformed files."""

import pathlib
from typing import TypeVar

import pydantic

from trainer.errors import ArtifactError

_Content = TypeVar("_Content", bound=pydantic.BaseModel)


class StrictModel(pydantic.BaseModel):
    """A frozen model that rejects unknown fields."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def read_export_file(content: type[_Content], export_dir: pathlib.Path, name: str, *, schema_version: int) -> _Content:
    """Load the file `name` of a finished export. Raises ArtifactError if it is missing or malformed."""
    path = export_dir / name
    try:
        return content.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{export_dir} is not a finished export (it holds no {name}); "
            "make one with: trainer export RUN --out EXPORT"
        ) from None
    except pydantic.ValidationError as e:
        raise ArtifactError(f"{path} is not of schema version {schema_version}: {e.errors()[0]['msg']}") from None
