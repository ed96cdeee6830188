"""The parity gate: every artifact, in its real runtime, against the model it was made from, on real images.

This module owns `EXPORT/parity.json`. The file holds only what two exports of one run have in common; the times go
to the screen and into `--json`.
"""

import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from export.consistency import find_contradiction
from export.figures import Figures, compare_probabilities, find_failure
from export.formats import FORMATS, Budget, Format
from export.runtimes import Arrays, Probabilities, Runtime, SavedModelRuntime, open_runtime
from export.samples import Batch, ImageSource, iterate_batches, spread_indices
from export.signature import IMAGE_BYTES, IMAGES, PROBABILITIES, Signature
from trainer import atomic
from trainer.errors import ArtifactError, ParityError
from trainer.progress import task_progress

FILE_NAME = "parity.json"
SCHEMA_VERSION: Final = 1
DEFAULT_NUM_IMAGES = 2_000
_BATCH_SIZE = 32

InputName = Literal["images", "image_bytes"]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Artifact(_Model):
    """One file (or SavedModel directory) of an export. `path` is relative to the export."""

    format: str
    path: str

    @property
    def budget(self) -> Budget:
        return FORMATS[self.format].budget

    @classmethod
    def of(cls, wanted: Format, signature: Signature, version: int) -> "Artifact":
        path = wanted.path(model_name=signature.model_name, version=version)
        return cls(format=wanted.name, path=path.as_posix())


class Comparison(_Model):
    """One artifact, through one of its inputs, against the reference. `failure` is null where it is within budget.

    `figures` is null where the artifact did not run. `ms_per_image` is the mean over the run and not written to the
    file: TFLite takes one image at a time, the others batches of 32.
    """

    format: str
    path: str
    input: InputName
    runtime: str
    num_bytes: int
    budget: Budget
    figures: Figures | None
    failure: str | None
    ms_per_image: float | None = pydantic.Field(None, exclude=True)

    @property
    def title(self) -> str:
        return f"{self.format} ({self.input})" if self.input == IMAGE_BYTES else self.format


class ParityReport(_Model):
    """`parity.json`: what was compared with what, on which images, and how it came out."""

    schema_version: Literal[1] = SCHEMA_VERSION
    signature_hash: str
    reference: str
    dataset_name: str
    dataset_hash: str
    split: str
    num_images: int
    num_images_in_split: int
    comparisons: list[Comparison]

    def raise_on_failure(self) -> None:
        """Raises ParityError naming the first artifact over its budget, the figure and the budget."""
        failed = [c for c in self.comparisons if c.failure]
        if failed:
            others = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
            raise ParityError(f"{failed[0].title}, {failed[0].path}: {failed[0].failure}{others}")

    def answer(self) -> dict[str, Any]:
        """What `--json` prints: the file's content, the times, and whether all passed."""
        answer = self.model_dump(mode="json")
        for row, comparison in zip(answer["comparisons"], self.comparisons, strict=True):
            row["ms_per_image"] = comparison.ms_per_image
        return {**answer, "passed": not any(c.failure for c in self.comparisons)}

    def artifacts(self) -> list[Artifact]:
        """Every artifact once."""
        found = {c.path: Artifact(format=c.format, path=c.path) for c in self.comparisons}
        return list(found.values())

    def save(self, directory: pathlib.Path) -> None:
        atomic.write_text(directory / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, directory: pathlib.Path) -> "ParityReport":
        """Raises ArtifactError where `directory` has no readable parity.json."""
        path = directory / FILE_NAME
        try:
            report = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"{directory} is not a finished export (it holds no {FILE_NAME}); export again"
            ) from None
        except pydantic.ValidationError as e:
            raise ArtifactError(f"{path} is not of schema version {SCHEMA_VERSION}: {e.errors()[0]['msg']}") from None
        for artifact in report.artifacts():
            inside = pathlib.PurePosixPath(artifact.path)
            if artifact.format not in FORMATS or inside.is_absolute() or ".." in inside.parts:
                raise ArtifactError(f"{path} names an artifact that no export has: {artifact.format}, {artifact.path}")
        return report


def run_gate(
    *,
    reference: Runtime,
    reference_name: str,
    signature: Signature,
    export_dir: pathlib.Path,
    artifacts: Sequence[Artifact],
    source: ImageSource,
    max_images: int | None = DEFAULT_NUM_IMAGES,
) -> ParityReport:
    """Runs every artifact of `export_dir` over `source` (at most `max_images`, evenly spread; None: all).

    Nothing is raised for an artifact that is over its budget or does not run: the report says so, see
    `ParityReport.raise_on_failure`.
    """
    subjects = [s for a in artifacts for s in _open_subjects(a, export_dir, signature)]
    indices = spread_indices(source.num_images, max_images)
    expected, class_ids = [], []
    with task_progress("comparing images", len(indices)) as progress:
        for batch in iterate_batches(source, indices, signature.geometry, _BATCH_SIZE):
            expected.append(reference.predict_probabilities(batch.images))
            class_ids.append(batch.class_ids)
            for subject in subjects:
                subject.answer(batch)
            progress.advance(len(batch.class_ids))
    return ParityReport(
        signature_hash=signature.content_hash(),
        reference=reference_name,
        dataset_name=source.name,
        dataset_hash=source.content_hash,
        split=source.split,
        num_images=len(indices),
        num_images_in_split=source.num_images,
        comparisons=[
            s.compare(np.concatenate(expected), np.concatenate(class_ids), signature.thresholds) for s in subjects
        ],
    )


class _Subject:
    """One input of one artifact, what it has answered so far, and what went wrong with it."""

    def __init__(self, artifact: Artifact, path: pathlib.Path, input_name: InputName, runtime_name: str) -> None:
        self._artifact = artifact
        self._num_bytes = size_on_disk(path)
        self._input = input_name
        self._runtime_name = runtime_name
        self._answers: list[Probabilities] = []
        self._secs = 0.0
        self.failure: str | None = None
        self.run: Callable[[Batch], Probabilities] | None = None

    def answer(self, batch: Batch) -> None:
        if self.run is None or self.failure:
            return
        start = time.perf_counter()
        try:
            self._answers.append(self.run(batch))
        except (ArtifactError, _WrongOutputError) as e:
            self.failure = str(e)
        self._secs += time.perf_counter() - start

    def compare(
        self, expected: Probabilities, class_ids: npt.NDArray[np.int64], thresholds: Sequence[float] | None
    ) -> Comparison:
        figures, failure = None, self.failure
        if failure is None:
            answers = np.concatenate(self._answers)
            if answers.shape == expected.shape:
                figures = compare_probabilities(expected, answers, class_ids, self._artifact.budget, thresholds)
                failure = find_failure(figures, self._artifact.budget)
            else:
                failure = f"answers of shape {list(answers.shape)} where the model gives {list(expected.shape)}"
        return Comparison(
            format=self._artifact.format,
            path=self._artifact.path,
            input=self._input,
            runtime=self._runtime_name,
            num_bytes=self._num_bytes,
            budget=self._artifact.budget,
            figures=figures,
            failure=failure,
            ms_per_image=1e3 * self._secs / len(expected) if figures else None,
        )


def _open_subjects(artifact: Artifact, export_dir: pathlib.Path, signature: Signature) -> Iterator[_Subject]:
    path = export_dir / artifact.path
    try:
        runtime = open_runtime(path)
    except ArtifactError as e:
        subject = _Subject(artifact, path, IMAGES, "none")
        subject.failure = str(e)
        yield subject
        return
    subject = _Subject(artifact, path, IMAGES, runtime.name)
    if isinstance(runtime, SavedModelRuntime):
        subject.run = _checked(runtime.predict_images, lambda batch: batch.images, signature)
        yield subject
        subject = _Subject(artifact, path, IMAGE_BYTES, runtime.name)
        subject.run = _checked(runtime.predict_encoded, lambda batch: batch.encoded, signature)
    else:
        predict = runtime.predict_probabilities
        subject.run = lambda batch: predict(batch.images)
    yield subject


class _WrongOutputError(Exception):
    """A SavedModel's outputs contradict each other."""


def _checked(
    predict: Callable[[Any], Arrays], take: Callable[[Batch], Any], signature: Signature
) -> Callable[[Batch], Probabilities]:
    """The probabilities of a SavedModel, after a look at the outputs that follow from them."""

    def run(batch: Batch) -> Probabilities:
        outputs = predict(take(batch))
        contradiction = find_contradiction(outputs, signature)
        if contradiction:
            raise _WrongOutputError(contradiction)
        probabilities: Probabilities = outputs[PROBABILITIES]
        return probabilities

    return run


def size_on_disk(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files below a directory; 0 where there is nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
