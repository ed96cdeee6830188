"""`EXPORT/checksums.json`: the SHA-256 of every other file of an export. Written last, it completes the export.

Only `replace_files` changes files of a finished export; a kill at any moment leaves it verifiable.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import pydantic

from export.files.read_file import StrictModel, read_export_file
from trainer.errors import ParityError
from trainer.system import atomic, lock

FILE_NAME = "checksums.json"
SCHEMA_VERSION: Final = 1


class Checksums(StrictModel):
    """The checksums of an export.

    Attributes:
        files: SHA-256 in hexadecimal by path relative to the export, with forward slashes.
        replacing: new checksums of files that were being replaced or added when the writer was killed; each file has
            either its checksum in `files` or the one here. Absent from the file if empty.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    files: dict[str, str]
    replacing: dict[str, str] = pydantic.Field(default_factory=dict)

    @classmethod
    def of(cls, export_dir: pathlib.Path, *, only: Sequence[str] | None = None) -> "Checksums":
        """Compute the checksums of all files below `export_dir`, or `only` of these."""
        names = _list_files(export_dir) if only is None else only
        return cls(files={name: sha256_of(export_dir / name) for name in names})

    def save(self, export_dir: pathlib.Path) -> None:
        left_out = None if self.replacing else {"replacing"}
        atomic.write_text(export_dir / FILE_NAME, self.model_dump_json(indent=2, exclude=left_out) + "\n")

    @classmethod
    def load(cls, export_dir: pathlib.Path) -> "Checksums":
        """Load the file. Raises ArtifactError if `export_dir` is not a finished export."""
        return read_export_file(cls, export_dir, FILE_NAME, schema_version=SCHEMA_VERSION)

    def content_hash(self) -> str:
        """Return a SHA-256 over the names and checksums of all files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    def verify(self, export_dir: pathlib.Path) -> None:
        """Compare every file with its checksum.

        Raises:
            ParityError: a file is missing, changed or added; it is named.
        """
        found = {name for name in _list_files(export_dir) if not self._is_left_over(name)}
        for name in sorted(set(self.files) - found):
            raise ParityError(f"{name} is missing from {export_dir}; copy the export again")
        for name in sorted(found):
            allowed = [of[name] for of in (self.files, self.replacing) if name in of]
            if not allowed:
                raise ParityError(f"{name} was added after {export_dir} was published; remove it, or export again")
            actual = sha256_of(export_dir / name)
            if actual not in allowed:
                raise ParityError(
                    f"{name} was changed after {export_dir} was published: SHA-256 {actual[:12]}... where "
                    f"{FILE_NAME} says {allowed[0][:12]}...; copy the export again"
                )

    def _is_left_over(self, name: str) -> bool:
        """Return whether `name` is a temporary file of a killed writer."""
        return any(name.startswith(f"{atomic.TEMPORARY_PREFIX}{of}-") for of in (FILE_NAME, *self.replacing))

    def _after_kill(self, export_dir: pathlib.Path) -> "Checksums":
        """Return the checksums with the replacements that a killed writer completed; other changes still show."""
        there = {name: expected for name, expected in self.replacing.items() if (export_dir / name).is_file()}
        done = {name: expected for name, expected in there.items() if sha256_of(export_dir / name) == expected}
        return Checksums(files={**self.files, **done})


def replace_files(export_dir: pathlib.Path, contents: Mapping[str, bytes]) -> None:
    """Replace or add files of a finished export, by name; all others keep their checksums.

    A kill leaves an export that verifies: the new checksums are announced first, then the files are written one by one,
    then the checksums become final.

    Raises:
        ArtifactError: `export_dir` is not a finished export.
    """
    with lock.hold_folder(export_dir):
        before = Checksums.load(export_dir)._after_kill(export_dir)
        atomic.remove_temporaries(export_dir)
        new = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        before.model_copy(update={"replacing": new}).save(export_dir)
        for name, content in contents.items():
            atomic.write_bytes(export_dir / name, content)
        Checksums(files=dict(sorted({**before.files, **new}.items()))).save(export_dir)


def _list_files(export_dir: pathlib.Path) -> list[str]:
    files = (p for p in export_dir.rglob("*") if p.is_file())
    return sorted(name for p in files if (name := p.relative_to(export_dir).as_posix()) != FILE_NAME)


def sha256_of(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
