"""Try fallbacks, in order, for an int8 file over its budget; the first within budget is taken.

The cheapest at run time come first, and no int8 file is as large as float16 would be.

The work is bounded by counts and not by the clock, so that two exports of one run choose the same: at most six
attempts, 1,024 calibration images, and for each attempt another pass of the gate.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Protocol

from export.convert.conversion import Conversion
from export.convert.quantization import NUM_CALIBRATION_IMAGES, Quantisation
from export.files.formats import (
    ONNX_DYNAMIC,
    ONNX_FLOAT16,
    ONNX_INT8,
    ONNX_INT8X16,
    TFLITE_DYNAMIC,
    TFLITE_FLOAT16,
    TFLITE_INT8,
    TFLITE_INT8X16,
    Format,
)
from export.files.parity import Artifact, Comparison, FallbackAttempt, FallbackLadder, ParityReport
from export.files.signature import Signature
from trainer.errors import ExportError
from trainer.system import in_use

_MORE_CALIBRATION_IMAGES = 4 * NUM_CALIBRATION_IMAGES
# Bytes relative to float32 are 1/4 + 3/4 of the share: even the larger share gives a file smaller than float16.
_SHARES_IN_FLOAT = (0.1, 0.3)
# Other formats, if no int8 file is within budget: 16-bit activations, 8-bit weights only, 16-bit weights.
_FALLBACK_FORMATS = {
    TFLITE_INT8.name: (TFLITE_INT8X16, TFLITE_DYNAMIC, TFLITE_FLOAT16),
    ONNX_INT8.name: (ONNX_INT8X16, ONNX_DYNAMIC, ONNX_FLOAT16),
}


class Gate(Protocol):
    """`run_gate` with all other arguments bound."""

    def __call__(self, *, export_dir: pathlib.Path, artifacts: list[Artifact]) -> ParityReport: ...


@dataclasses.dataclass(frozen=True)
class _Attempt:
    wanted: Format
    what: str
    quantisation: Quantisation


@dataclasses.dataclass(frozen=True)
class _Tried:
    attempt: _Attempt
    artifact: Artifact
    comparison: Comparison | None
    failure: str | None


def replace_over_budget(
    report: ParityReport,
    *,
    conversion: Conversion,
    gate: Gate,
    signature: Signature,
    version: int,
    export_dir: pathlib.Path,
    keep_over_budget: bool,
    say: Callable[[str], None],
) -> ParityReport:
    """Replace every int8 artifact of `export_dir` that is over its budget, and its row in `report`.

    Its replacement is another int8 file, or a file of another format under that format's name. If nothing is within
    budget the report still fails; with `keep_over_budget` it then holds the most accurate int8 file.

    `say` is called with a sentence for each attempt and its result.
    """
    for comparison in report.comparisons:
        if comparison.format in _FALLBACK_FORMATS and comparison.is_over_budget:
            search = _FallbackSearch(comparison, conversion, gate, signature, version, say)
            report = search.replace_in(report, export_dir, keep_over_budget)
    return report


class _FallbackSearch:
    """Searches a replacement for one artifact over its budget."""

    def __init__(
        self,
        first: Comparison,
        conversion: Conversion,
        gate: Gate,
        signature: Signature,
        version: int,
        say: Callable[[str], None],
    ) -> None:
        self._first = first
        self._conversion, self._gate, self._say = conversion, gate, say
        self._signature, self._version = signature, version

    def replace_in(self, report: ParityReport, export_dir: pathlib.Path, keep_over_budget: bool) -> ParityReport:
        name = self._first.format
        self._say(f"{name} is over its budget ({self._first.failure})")
        rungs = [_attempt_of(self._first, f"{NUM_CALIBRATION_IMAGES:,} calibration images, a scale for each channel")]
        nearest, chosen = self._first, None
        with in_use.scratch_folder() as scratch:
            for attempt in _attempts(name, self._conversion.num_training_images):
                tried = self._try(attempt, report, scratch)
                rungs.append(_describe(tried))
                self._say(f"  {attempt.what}: {tried.failure or 'within budget'}")
                if tried.comparison is None:
                    continue
                if tried.failure is None:
                    chosen = tried.comparison
                    break
                if attempt.wanted.name == name and _accuracy(tried.comparison) > _accuracy(nearest):
                    nearest = tried.comparison
                    (scratch / tried.artifact.path).rename(scratch / "nearest")
            ladder = FallbackLadder(format=name, chosen=chosen.format if chosen else None, rungs=rungs)
            rows = self._rows(report, scratch, export_dir, nearest, chosen, keep_over_budget)
        return report.model_copy(update={"comparisons": rows, "ladders": [*report.ladders, ladder]})

    def _try(self, attempt: _Attempt, report: ParityReport, scratch: pathlib.Path) -> _Tried:
        artifact = Artifact.of(attempt.wanted, self._signature, self._version)
        already = next((c for c in report.comparisons if c.path == artifact.path), None)
        if already and attempt.wanted.name != self._first.format:
            return _Tried(attempt, artifact, already, already.failure)
        self._say(f"trying {attempt.wanted.name}: {attempt.what}")
        path = scratch / artifact.path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(self._conversion.convert(attempt.wanted, attempt.quantisation))
        except ExportError as e:
            return _Tried(attempt, artifact, None, str(e))
        (comparison,) = self._gate(export_dir=scratch, artifacts=[artifact]).comparisons
        return _Tried(attempt, artifact, comparison, comparison.failure)

    def _rows(
        self,
        report: ParityReport,
        scratch: pathlib.Path,
        export_dir: pathlib.Path,
        nearest: Comparison,
        chosen: Comparison | None,
        keep_over_budget: bool,
    ) -> list[Comparison]:
        """Copy the chosen files to `export_dir`, and return the comparisons of the report after the choice."""
        first = self._first
        if chosen and chosen.format == first.format:
            shutil.copyfile(scratch / chosen.path, export_dir / chosen.path)
            return [chosen if c is first else c for c in report.comparisons]
        if nearest is not first:
            shutil.copyfile(scratch / "nearest", export_dir / nearest.path)
        rows = [nearest if c is first else c for c in report.comparisons]
        if chosen is None:
            return rows
        if chosen not in rows:
            shutil.copyfile(scratch / chosen.path, export_dir / chosen.path)
            rows.insert(rows.index(nearest) + 1, chosen)
        if not keep_over_budget:
            (export_dir / nearest.path).unlink()
            rows.remove(nearest)
        return rows


def _attempts(name: str, num_training_images: int) -> Iterator[_Attempt]:
    int8 = {f.name: f for f in (TFLITE_INT8, ONNX_INT8)}[name]
    num_images = min(_MORE_CALIBRATION_IMAGES, num_training_images)
    if num_images > NUM_CALIBRATION_IMAGES:
        yield _Attempt(int8, f"{num_images:,} calibration images", Quantisation(num_images=num_images))
    for share in _SHARES_IN_FLOAT:
        what = f"the layers that it harms most, up to {share:.0%} of all, left in float32"
        yield _Attempt(int8, what, Quantisation(num_images=num_images, share_in_float=share))
    whats = ("activations of 16 bits", "weights alone quantised beforehand", "float16")
    for wanted, what in zip(_FALLBACK_FORMATS[name], whats, strict=True):
        yield _Attempt(wanted, what, Quantisation(num_images=num_images))


def _describe(tried: _Tried) -> FallbackAttempt:
    if tried.comparison:
        return _attempt_of(tried.comparison, tried.attempt.what)
    return FallbackAttempt(
        format=tried.attempt.wanted.name, what=tried.attempt.what, num_bytes=None, accuracy=None, failure=tried.failure
    )


def _attempt_of(comparison: Comparison, what: str) -> FallbackAttempt:
    accuracy = comparison.figures.accuracy if comparison.figures else None
    return FallbackAttempt(
        format=comparison.format,
        what=what,
        num_bytes=comparison.num_bytes,
        accuracy=accuracy,
        failure=comparison.failure,
    )


def _accuracy(comparison: Comparison) -> float:
    return comparison.figures.accuracy if comparison.figures else -1.0
