"""`parity.json`: how each artifact's answers differ from the trained model's, and whether within budget."""

import pathlib
from collections.abc import Collection
from typing import Any, Final, Literal

import pydantic

from export.files.formats import FORMATS, MIN_NUM_IMAGES, Budget, Format
from export.files.read_file import StrictModel, read_export_file
from export.files.signature import IMAGE_BYTES, IMAGES, Signature
from trainer.errors import ArtifactError, ParityError
from trainer.system import atomic

FILE_NAME = "parity.json"
SCHEMA_VERSION: Final = 2
# Margin of accuracy over the best constant answer, below which accuracy judges nothing: ten times an integer format's
# allowed drop.
_MIN_KNOWLEDGE = 0.1
InputName = Literal["images", "image_bytes", "client_pixels", "odd_files", "odd_pixels"]
# Pixels for the input `images` that a client decoded and resized itself.
CLIENT_PIXELS: Final = "client_pixels"


class Artifact(StrictModel):
    """A file (or SavedModel directory) of an export; `path` is relative to the export."""

    format: str
    path: str

    @property
    def budget(self) -> Budget:
        return FORMATS[self.format].budget

    @classmethod
    def of(cls, wanted: Format, signature: Signature, version: int) -> "Artifact":
        path = wanted.path(model_name=signature.model_name, version=version)
        return cls(format=wanted.name, path=path.as_posix())


class FallbackAttempt(StrictModel):
    """One attempt to get an int8 format within its budget: `what` was changed, the `format` made, and its figures."""

    format: str
    what: str
    num_bytes: int | None
    accuracy: float | None
    failure: str | None


class FallbackLadder(StrictModel):
    """The fallbacks that were tried for a format over its budget, in order, including the first attempt.

    `chosen` is the format of the published attempt, the last of `rungs`; null if none was within budget.
    """

    format: str
    chosen: str | None
    rungs: list[FallbackAttempt]

    def describe(self) -> list[str]:
        """Return a sentence for each attempt, and one for the outcome."""
        tried = [
            f"{r.format}, {r.what}: {r.failure or f'within budget, accuracy {r.accuracy:.4f}'}" for r in self.rungs
        ]
        if self.chosen is None:
            return [*tried, f"{self.format}: no attempt is within budget"]
        if self.chosen == self.format:
            return [*tried, f"{self.format} is published with {self.rungs[-1].what}"]
        return [*tried, f"{self.chosen} ({self.rungs[-1].what}) is published instead of {self.format}"]


def size_on_disk(path: pathlib.Path) -> int:
    """Return the bytes of a file, or of all files below a directory; 0 if there is nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


class ClassAgreement(StrictModel):
    """The fraction of the `num_images` that the model assigns to a class that the artifact assigns to it too."""

    class_id: int
    num_images: int
    agreement: float


class Figures(StrictModel):
    """How the answers of an artifact differ from those of the model over `num_images`.

    Attributes:
        agreement: fraction of images with the same most probable class; for multi-label, with the same decision for
            every class.
        num_clear_disagreements: images with another class although the model's two highest probabilities differ by more
            than twice the budget's difference (multi-label: a class decided differently although its probability is
            further from its threshold than that difference); null if the budget has none.
        num_set_aside: images with another class by a smaller margin, which are counted and not judged; null if the
            budget has no difference.
        max_difference, mean_difference: of a probability, over all images and classes; null if one is not finite.
        accuracy, reference_accuracy: of the artifact and of the model: fraction of images with their true class
            (multi-label: exactly their true classes).
        accuracy_interval: 95% (Wilson).
        num_not_finite: images for which the artifact or the model answers NaN or infinity.
        num_uninformative: images with an uninformative answer of the artifact, see `information`.
        worst_class: the class with the lowest agreement, of those with enough images; null if there is none.
        model_answers_alike: the model itself gives all images one answer, so there is nothing to compare.
        commonest_share: accuracy of always predicting the commonest class; null in files of earlier versions.
    """

    num_images: int
    agreement: float
    num_clear_disagreements: int | None
    num_set_aside: int | None
    max_difference: float | None
    mean_difference: float | None
    accuracy: float
    accuracy_interval: tuple[float, float]
    reference_accuracy: float
    num_not_finite: int
    num_uninformative: int = 0
    worst_class: ClassAgreement | None = None
    model_answers_alike: bool = False
    commonest_share: float | None = None

    @property
    def is_too_weak(self) -> bool:
        """True if the model hardly beats a constant answer, so that accuracy judges nothing."""
        return self.commonest_share is not None and self.reference_accuracy - self.commonest_share < _MIN_KNOWLEDGE


class Comparison(StrictModel):
    """One input of one artifact, compared with the reference.

    Attributes:
        input: images and image_bytes are inputs of the artifact; client_pixels are decoded and resized with Pillow by a
            client, see `client_images`; odd_files are the original bytes of unusual files, and odd_pixels a client's
            pixels of these; both are compared with the artifact's answer to the pixels that training would have seen.
        figures: null if the artifact did not run.
        failure: null if it is within budget.
        allowed: published although over budget (`--allow-failed`).
        ms_per_image: mean, not written to the file; TFLite takes one image at a time, others batches of 32.
    """

    format: str
    path: str
    input: InputName
    runtime: str
    num_bytes: int
    budget: Budget
    figures: Figures | None
    failure: str | None
    allowed: bool = False
    ms_per_image: float | None = pydantic.Field(None, exclude=True)

    @property
    def title(self) -> str:
        return self.format if self.input == IMAGES else f"{self.format} ({self.input})"

    @property
    def is_over_budget(self) -> bool:
        """True if all answers are finite but too far from the model's; anything worse is never allowed."""
        return self.failure is not None and self.figures is not None and self.figures.num_not_finite == 0


class ParityReport(StrictModel):
    """The content of `parity.json`: what was compared with what, on which images, and the results."""

    schema_version: Literal[2] = SCHEMA_VERSION
    signature_hash: str
    reference: str
    dataset_name: str
    dataset_hash: str
    split: str
    num_images: int
    num_images_in_split: int
    comparisons: list[Comparison]
    ladders: list[FallbackLadder] = pydantic.Field(default_factory=list)

    def raise_on_failure(self) -> None:
        """Raise ParityError naming the first artifact over its budget, the figure and the budget."""
        failed = self._failed()
        if failed:
            others = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
            raise ParityError(f"{failed[0].title}, {failed[0].path}: {failed[0].failure}{others}")

    def _failed(self) -> list[Comparison]:
        return [c for c in self.comparisons if c.failure and not c.allowed]

    def allow_over_budget(self, paths: Collection[str] | None = None) -> "ParityReport":
        """Return the report with artifacts at `paths` (None: all) that are merely over budget marked as allowed."""
        marked = [
            c.model_copy(update={"allowed": c.is_over_budget and (paths is None or c.path in paths)})
            for c in self.comparisons
        ]
        return self.model_copy(update={"comparisons": marked})

    def allow_nothing(self) -> "ParityReport":
        """Return the report with nothing marked as allowed."""
        return self.allow_over_budget(())

    def allowed_paths(self) -> set[str]:
        return {c.path for c in self.comparisons if c.allowed}

    def remarks(self) -> list[str]:
        """Return caveats for a reader of the figures, in sentences."""
        remarks = [f"OVER BUDGET, published on request: {c.title}: {c.failure}" for c in self.comparisons if c.allowed]
        if self.num_images < MIN_NUM_IMAGES:
            which = "all that the split has" if self.num_images == self.num_images_in_split else "by choice"
            remarks.append(
                f"ONLY {self.num_images} IMAGES were compared, {which}: at least {MIN_NUM_IMAGES} are recommended"
            )
        figures = next((c.figures for c in self.comparisons if c.figures), None)
        if figures and figures.model_answers_alike:
            remarks.append(
                "THE MODEL ITSELF GIVES ALL IMAGES ONE ANSWER: it has learned nothing, and nothing was compared"
            )
        elif figures and figures.is_too_weak:
            own, commonest = 100 * figures.reference_accuracy, 100 * (figures.commonest_share or 0)
            remarks.append(
                f"ACCURACY MEANS LITTLE HERE: the model itself is right on {own:.1f}% of the images, and always "
                f"predicting the commonest class on {commonest:.1f}%; agreement with the model is judged instead"
            )
        for c in self.comparisons:
            if c.figures and c.figures.num_set_aside:
                remarks.append(f"{c.title}: {c.figures.num_set_aside} images set aside: another class by a thin margin")
        return remarks + [sentence for ladder in self.ladders for sentence in ladder.describe()]

    def answer(self) -> dict[str, Any]:
        """Return what `--json` prints: the file's content, the times, and whether all passed."""
        answer = self.model_dump(mode="json")
        for row, comparison in zip(answer["comparisons"], self.comparisons, strict=True):
            row["ms_per_image"] = comparison.ms_per_image
        return {**answer, "passed": not self._failed()}

    def artifacts(self) -> list[Artifact]:
        """Return every artifact once."""
        found = {c.path: Artifact(format=c.format, path=c.path) for c in self.comparisons}
        return list(found.values())

    def inputs_of(self, artifact: Artifact) -> list[Comparison]:
        """Return the comparisons of the inputs of `artifact`, without a client's pixels and odd files."""
        return [c for c in self.comparisons if c.path == artifact.path and c.input in (IMAGES, IMAGE_BYTES)]

    def save(self, directory: pathlib.Path) -> None:
        atomic.write_text(directory / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, directory: pathlib.Path) -> "ParityReport":
        """Load the file. Raises ArtifactError if it is missing or malformed."""
        report = read_export_file(cls, directory, FILE_NAME, schema_version=SCHEMA_VERSION)
        for artifact in report.artifacts():
            inside = pathlib.PurePosixPath(artifact.path)
            if artifact.format not in FORMATS or inside.is_absolute() or ".." in inside.parts:
                raise ArtifactError(
                    f"{directory / FILE_NAME} names an artifact that no export has: {artifact.format}, {artifact.path}"
                )
        return report
