"""What the parity gate asks: one input of one artifact, its answers so far, and what went wrong with it."""

import dataclasses
import functools
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from export.files.formats import CLIENT_BUDGET, ODD_FILES_BUDGET, Budget
from export.files.parity import CLIENT_PIXELS, Figures, InputName
from export.files.signature import IMAGE_BYTES, IMAGES, LABELS_FILE, PROBABILITIES, Signature
from export.gate.figures import compare_probabilities, find_failure
from export.gate.odd_files import OddFiles
from export.gate.output_consistency import find_answer_of_refused, find_contradiction
from export.runtime.client_images import load_client_pixels, predict_files
from export.runtime.runtimes import Arrays, Probabilities, Runtime, SavedModelRuntime, open_runtime
from export.runtime.samples import Batch, ClassIds
from trainer.errors import ArtifactError

# `image_bytes` and `client_pixels` of files as strangers send them, see `odd_files`.
ODD_FILES: Final = "odd_files"
ODD_PIXELS: Final = "odd_pixels"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """See `parity.Comparison`."""

    figures: Figures | None
    failure: str | None
    ms_per_image: float | None


class Subject:
    """`answer` to every batch, then `compare`. An artifact that fails once is asked no more."""

    def __init__(
        self,
        input_name: InputName,
        runtime_name: str,
        budget: Budget,
        run: Callable[[Batch], Probabilities] | None = None,
        expect: Callable[[Batch], Probabilities] | None = None,
    ) -> None:
        """expect: of odd files, what the artifact answers to the pixels that training would have seen."""
        self.input: InputName = input_name
        self.budget = budget
        self.runtime_name = runtime_name
        self._answers: list[Probabilities] = []
        self._secs = 0.0
        self.failure: str | None = None
        self.run = run
        self.expect = expect

    def answer(self, batch: Batch) -> None:
        if self.run is None or self.failure:
            return
        start = time.perf_counter()
        try:
            self._answers.append(self.run(batch))
        except (ArtifactError, _WrongOutputError) as e:
            self.failure = str(e)
        self._secs += time.perf_counter() - start

    def compare(self, expected: Probabilities, class_ids: ClassIds, signature: Signature) -> Outcome:
        if self.failure:
            return Outcome(None, self.failure, None)
        answers = np.concatenate(self._answers)
        if answers.shape != expected.shape:
            failure = f"answers of shape {list(answers.shape)} where the model gives {list(expected.shape)}"
            return Outcome(None, failure, None)
        figures = compare_probabilities(expected, answers, class_ids, self.budget, signature.thresholds)
        over_budget = find_failure(figures, self.budget, signature.class_names)
        return Outcome(figures, over_budget, 1e3 * self._secs / len(expected))

    def compare_odd_files(self, files: OddFiles, signature: Signature) -> Outcome:
        """Asks and compares; a failure names the kind of file that differs most."""
        assert self.expect is not None, "only of those that expect something"
        try:
            expected = self.expect(files.batch)
        except (ArtifactError, _WrongOutputError) as e:
            return Outcome(None, str(e), None)
        self.answer(files.batch)
        outcome = self.compare(expected, files.batch.class_ids, signature)
        if outcome.failure is None or outcome.figures is None:
            return outcome
        kind = files.kinds[int(np.abs(self._answers[0] - expected).max(axis=-1).argmax())]
        return dataclasses.replace(outcome, failure=f"{kind}: {outcome.failure}")


def open_subjects(path: pathlib.Path, signature: Signature, budget: Budget, *, has_client: bool) -> Iterator[Subject]:
    """One for each input of the artifact at `path`; a failed one where it does not load.

    has_client: two more, for pixels that a client decoded and resized, where it loads.
    """
    try:
        runtime = open_runtime(path)
    except ArtifactError as e:
        subject = Subject(IMAGES, "none", budget)
        subject.failure = str(e)
        yield subject
        return
    predict = runtime.predict_probabilities
    if isinstance(runtime, SavedModelRuntime):
        ask = functools.partial(predict_files, runtime.predict_encoded)
        pixels = _checked(runtime.predict_images, lambda batch: batch.images, signature)
        files = _checked(ask, lambda batch: batch.encoded, signature)
        yield Subject(IMAGES, runtime.name, budget, pixels)
        yield Subject(IMAGE_BYTES, runtime.name, budget, files)
        if signature.reads_odd_files:
            odd = _refusing(runtime.predict_encoded, files)
            yield Subject(ODD_FILES, runtime.name, ODD_FILES_BUDGET, odd, expect=pixels)
    else:
        subject = Subject(IMAGES, runtime.name, budget, lambda batch: predict(batch.images))
        if path.suffix == ".tflite":
            subject.failure = _find_other_labels(path, signature)
        yield subject
    if has_client:
        run = functools.partial(_answer_client, runtime, signature)
        yield Subject(CLIENT_PIXELS, runtime.name, CLIENT_BUDGET, run)
        yield Subject(ODD_PIXELS, runtime.name, ODD_FILES_BUDGET, run, expect=lambda b: predict(b.images))


def _answer_client(runtime: Runtime, signature: Signature, batch: Batch) -> Probabilities:
    return runtime.predict_probabilities(load_client_pixels(batch.encoded, signature.geometry))


def _refusing(
    predict: Callable[[list[bytes]], Arrays], answer: Callable[[Batch], Probabilities]
) -> Callable[[Batch], Probabilities]:
    """`answer`, after a look that what is refused has no class."""

    def run(batch: Batch) -> Probabilities:
        contradiction = find_answer_of_refused(predict(batch.encoded))
        if contradiction:
            raise _WrongOutputError(contradiction)
        return answer(batch)

    return run


class _WrongOutputError(Exception):
    """A SavedModel's outputs contradict each other."""


def _find_other_labels(path: pathlib.Path, signature: Signature) -> str | None:
    """What is wrong with the labels inside a TFLite file, which MediaPipe names the classes by."""
    try:
        with zipfile.ZipFile(path) as archive:
            labels = archive.read(LABELS_FILE)
    except (zipfile.BadZipFile, KeyError):
        return f"it has no {LABELS_FILE} inside"
    if labels == signature.labels_text().encode():
        return None
    return f"the {LABELS_FILE} inside does not list the classes of the signature in their order"


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
