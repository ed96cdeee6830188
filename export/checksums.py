"""`EXPORT/checksums.json`: the SHA-256 of every other file of an export. Written last, it completes the export."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Final, Literal

import pydantic

from export.export_file import read_export_file
from trainer import atomic
from trainer.errors import ParityError

FILE_NAME = "checksums.json"
SCHEMA_VERSION: Final = 1


class Checksums(pydantic.BaseModel):
    """`files` maps a path relative to the export, with forward slashes, to a SHA-256 in hexadecimal."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    files: dict[str, str]

    @classmethod
    def of(cls, export_dir: pathlib.Path, *, only: Sequence[str] | None = None) -> "Checksums":
        """Reads every file below `export_dir`, or `only` these."""
        names = _list_files(export_dir) if only is None else only
        return cls(files={name: _sha256_of(export_dir / name) for name in names})

    def save(self, export_dir: pathlib.Path) -> None:
        atomic.write_text(export_dir / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, export_dir: pathlib.Path) -> "Checksums":
        """Raises ArtifactError where `export_dir` is no finished export."""
        return read_export_file(cls, export_dir, FILE_NAME, schema_version=SCHEMA_VERSION)

    def content_hash(self) -> str:
        """SHA-256 over the names and checksums of all files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    def verify(self, export_dir: pathlib.Path) -> None:
        """Compares every file with its checksum.

        Raises:
            ParityError: a file is missing, changed, or was not there when the export was published; it is named.
        """
        found = set(_list_files(export_dir))
        for name, expected in self.files.items():
            if name not in found:
                raise ParityError(f"{name} is missing from {export_dir}; copy the export again")
            actual = _sha256_of(export_dir / name)
            if actual != expected:
                raise ParityError(
                    f"{name} was changed after {export_dir} was published: SHA-256 {actual[:12]}... where "
                    f"{FILE_NAME} says {expected[:12]}...; copy the export again"
                )
        for name in sorted(found - set(self.files)):
            raise ParityError(f"{name} was added after {export_dir} was published; remove it, or export again")


def _list_files(export_dir: pathlib.Path) -> list[str]:
    files = (p for p in export_dir.rglob("*") if p.is_file())
    return sorted(name for p in files if (name := p.relative_to(export_dir).as_posix()) != FILE_NAME)


def _sha256_of(path: pathlib.Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
