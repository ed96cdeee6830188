"""Prove a SavedModel version by itself, wherever it is copied: by its checksums and its golden answers.

    assets.extra/checksums.json       SHA-256 of every other file of the version
    assets.extra/golden_answers.npz   a few images, and how each signature must answer them:
        images                  [n, size, size, 3] uint8   at the model's size
        encoded                 [total] uint8              the n encoded files, end to end
        encoded_lengths         [n] int64                  bytes of each
        num_warmup_requests     [] int64                   records in tf_serving_warmup_requests
        probabilities/<s>       [n, classes] float32       the answer of the signature s
        labels/<s>              [n] bytes                  its labels, if it has them
        max_difference/<s>      [] float64                 how far any probability may be off

TensorFlow Serving ignores both. They hold no version number, so that a version can be renumbered.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from export.files.arrays import DAMAGED, join_files, read_arrays, split_files, write_arrays
from export.files.checksums import sha256_of
from export.files.read_file import StrictModel, read_export_file
from trainer.errors import ArtifactError, ParityError
from trainer.system import atomic

DIRECTORY: Final = pathlib.PurePosixPath("assets.extra")
CHECKSUMS_FILE: Final = DIRECTORY / "checksums.json"
GOLDEN_FILE: Final = DIRECTORY / "golden_answers.npz"
WARMUP_FILE: Final = DIRECTORY / "tf_serving_warmup_requests"
SCHEMA_VERSION: Final = 1

Array = npt.NDArray[Any]


class VersionChecksums(StrictModel):
    """The checksums of a version; `files` are relative to its directory, with forward slashes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    files: dict[str, str]

    @classmethod
    def of(cls, version_dir: pathlib.Path) -> "VersionChecksums":
        found = {p.relative_to(version_dir).as_posix(): p for p in version_dir.rglob("*") if p.is_file()}
        found.pop(str(CHECKSUMS_FILE), None)
        return cls(files={name: sha256_of(found[name]) for name in sorted(found)})

    def save(self, version_dir: pathlib.Path) -> None:
        atomic.write_text(version_dir / CHECKSUMS_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, version_dir: pathlib.Path) -> "VersionChecksums":
        """Load the file. Raises ArtifactError if it is missing or malformed."""
        return read_export_file(cls, version_dir, str(CHECKSUMS_FILE), schema_version=SCHEMA_VERSION)

    def verify(self, version_dir: pathlib.Path) -> None:
        """Raise ParityError for a file that is missing or changed; files that were added are ignored."""
        verify_files(version_dir, self.files, said_by=str(CHECKSUMS_FILE))


def verify_files(directory: pathlib.Path, files: Mapping[str, str], *, said_by: str) -> None:
    """Raise ParityError for one of `files` that is missing from `directory`, or has another SHA-256 than the one here.

    `said_by` is the file that lists them.
    """
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise ParityError(f"{name} is missing from {directory}; copy the version again")
        actual = sha256_of(path)
        if actual != expected:
            raise ParityError(
                f"{name} of {directory} was changed: SHA-256 {actual[:12]}... where {said_by} says "
                f"{expected[:12]}...; copy the version again"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenAnswer:
    """How one signature must answer: probabilities up to `max_difference`; `labels` are None if it has none."""

    probabilities: Array
    max_difference: float
    labels: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionGolden:
    """The content of `golden_answers.npz`; `answers` is by signature."""

    images: Array
    encoded: list[bytes]
    num_warmup_requests: int
    answers: Mapping[str, GoldenAnswer]

    def save(self, version_dir: pathlib.Path) -> None:
        arrays: dict[str, Array] = {
            "images": self.images,
            **join_files(self.encoded),
            "num_warmup_requests": np.array(self.num_warmup_requests, np.int64),
        }
        for name, answer in self.answers.items():
            arrays[f"probabilities/{name}"] = answer.probabilities
            arrays[f"max_difference/{name}"] = np.array(answer.max_difference, np.float64)
            if answer.labels is not None:
                arrays[f"labels/{name}"] = answer.labels.astype(bytes)
        write_arrays(version_dir / GOLDEN_FILE, arrays)

    @classmethod
    def load(cls, version_dir: pathlib.Path) -> "VersionGolden":
        """Load the file. Raises ArtifactError if it is missing or malformed."""
        path = version_dir / GOLDEN_FILE
        try:
            arrays = read_arrays(path)
            names = [name.removeprefix("probabilities/") for name in arrays if name.startswith("probabilities/")]
            return cls(
                images=arrays["images"],
                encoded=split_files(arrays),
                num_warmup_requests=int(arrays["num_warmup_requests"]),
                answers={
                    name: GoldenAnswer(
                        probabilities=arrays[f"probabilities/{name}"],
                        max_difference=float(arrays[f"max_difference/{name}"]),
                        labels=arrays.get(f"labels/{name}"),
                    )
                    for name in names
                },
            )
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing; copy the version again") from None
        except (*DAMAGED, TypeError) as e:
            raise ArtifactError(f"{path} does not hold golden answers ({e}); copy the version again") from None
