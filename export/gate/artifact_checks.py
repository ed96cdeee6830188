"""Check one input of one artifact: run it on every batch, collect the answers, compare them with the model's."""

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

# `image_bytes` and `client_pixels` of unusual files, see `odd_files`.
ODD_FILES: Final = "odd_files"
ODD_PIXELS: Final = "odd_pixels"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a check; for the fields see `parity.Comparison`."""

    figures: Figures | None
    failure: str | None
    ms_per_image: float | None


class ArtifactCheck:
    """Checks one input of one artifact: call `answer` for every batch, then `compare`. Stops at the first failure."""

    def __init__(
        self,
        input_name: InputName,
        runtime_name: str,
        budget: Budget,
        run: Callable[[Batch], Probabilities] | None = None,
        expect: Callable[[Batch], Probabilities] | None = None,
    ) -> None:
        """Prepare a check; `run` is None for an artifact that does not load.

        For odd files, `expect` gives the artifact's answer to the pixels that training would have seen.
        """
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
        """Run on odd files and compare; a failure names the kind of file that differs most."""
        assert self.expect is not None, "only checks of odd files have an expected answer"
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


def open_checks(
    path: pathlib.Path, signature: Signature, budget: Budget, *, has_client: bool
) -> Iterator[ArtifactCheck]:
    """Yield a check for each input of the artifact at `path`, or one failed check if it does not load.

    With `has_client`, two more check pixels that a client decoded and resized.
    """
    try:
        runtime = open_runtime(path)
    except ArtifactError as e:
        check = ArtifactCheck(IMAGES, "none", budget)
        check.failure = str(e)
        yield check
        return
    predict = runtime.predict_probabilities
    if isinstance(runtime, SavedModelRuntime):
        predict_encoded = functools.partial(predict_files, runtime.predict_encoded)
        pixels = _checked(runtime.predict_images, lambda batch: batch.images, signature)
        files = _checked(predict_encoded, lambda batch: batch.encoded, signature)
        yield ArtifactCheck(IMAGES, runtime.name, budget, pixels)
        yield ArtifactCheck(IMAGE_BYTES, runtime.name, budget, files)
        if signature.reads_odd_files:
            odd = _refusing(runtime.predict_encoded, files)
            yield ArtifactCheck(ODD_FILES, runtime.name, ODD_FILES_BUDGET, odd, expect=pixels)
    else:
        check = ArtifactCheck(IMAGES, runtime.name, budget, lambda batch: predict(batch.images))
        if path.suffix == ".tflite":
            check.failure = _find_other_labels(path, signature)
        yield check
    if has_client:
        run = functools.partial(_answer_client, runtime, signature)
        yield ArtifactCheck(CLIENT_PIXELS, runtime.name, CLIENT_BUDGET, run)
        yield ArtifactCheck(ODD_PIXELS, runtime.name, ODD_FILES_BUDGET, run, expect=lambda b: predict(b.images))


def _answer_client(runtime: Runtime, signature: Signature, batch: Batch) -> Probabilities:
    return runtime.predict_probabilities(load_client_pixels(batch.encoded, signature.geometry))


def _refusing(
    predict: Callable[[list[bytes]], Arrays], answer: Callable[[Batch], Probabilities]
) -> Callable[[Batch], Probabilities]:
    """Wrap `answer` with a check that refused images get no class."""

    def run(batch: Batch) -> Probabilities:
        contradiction = find_answer_of_refused(predict(batch.encoded))
        if contradiction:
            raise _WrongOutputError(contradiction)
        return answer(batch)

    return run


class _WrongOutputError(Exception):
    """The outputs of a SavedModel contradict each other."""


def _find_other_labels(path: pathlib.Path, signature: Signature) -> str | None:
    """Return what is wrong with the labels inside a TFLite file, which MediaPipe shows, or None."""
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
    """Wrap a SavedModel's `predict`: check that its outputs are consistent, return the probabilities."""

    def run(batch: Batch) -> Probabilities:
        outputs = predict(take(batch))
        contradiction = find_contradiction(outputs, signature)
        if contradiction:
            raise _WrongOutputError(contradiction)
        probabilities: Probabilities = outputs[PROBABILITIES]
        return probabilities

    return run
