"""Charts whose axes both go from 0 to 1: reliability, ROC, precision against recall."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from trainer.metrics.calibration import ReliabilityBin
from trainer.metrics.evaluation import Evaluation
from trainer.metrics.ranking import ClassScores, Curve, has_class, precision_recall_curve, roc_curve
from trainer.metrics.scores import Bools, Floats, Labels, Logits
from trainer.report.figures import Line, LineChart, Point, Scale, Tick, thin_out

_UNIT = Scale(low=0, high=1)
# Of a curve, which has no more pixels.
_MAX_BUCKETS = 100
_COLORS = ("train", "validation", "third")


def reliability_chart(evaluation: Evaluation) -> LineChart:
    """Draw accuracy against confidence, with a dot for each bin, larger for more answers; the diagonal is the ideal."""
    calibration = evaluation.calibration
    lines = [
        _line("well calibrated", "reference", [(0.0, 0.0), (1.0, 1.0)], ""),
        _dots("as it is", "train", calibration.bins, f"error {calibration.ece:.3f}"),
    ]
    if calibration.ece_with_temperature is not None:
        last = f"error {calibration.ece_with_temperature:.3f}"
        lines.append(_dots("with the temperature", "validation", calibration.bins_with_temperature, last))
    return _chart("Accuracy against confidence", lines)


def ranking_charts(evaluation: Evaluation, labels: Labels, logits: Logits) -> list[LineChart]:
    """Draw ROC and precision-recall curves of the positive class, or of the best, the median and the worst class."""
    scores, classes = ClassScores(logits, evaluation.task), evaluation.classes
    usable = [k for k, of_class in enumerate(classes) if of_class.roc_auc is not None]
    if evaluation.task == "binary":
        usable = usable[1:]
    if not usable:
        return []

    def lines(curve: Callable[[Bools, Floats], Curve], areas: Sequence[float | None]) -> list[Line]:
        chosen = _choose({k: areas[k] or 0.0 for k in usable})
        curves = [(classes[k].name, curve(has_class(labels, k), scores.of(k))) for k in chosen]
        return [_curve(name, color, found) for (name, found), color in zip(curves, _COLORS, strict=False)]

    chance = [_line("chance", "reference", [(0.0, 0.0), (1.0, 1.0)], "")]
    return [
        _chart("True against false positive rate (ROC)", chance + lines(roc_curve, [c.roc_auc for c in classes])),
        _chart("Precision against recall", lines(precision_recall_curve, [c.average_precision for c in classes])),
    ]


def _choose(areas: dict[int, float]) -> list[int]:
    """Return the classes of the largest, the median and the smallest area; only their curves are computed."""
    ranked = sorted(areas, key=lambda k: -areas[k])
    return [ranked[place] for place in sorted({0, len(ranked) // 2, len(ranked) - 1})]


def _curve(name: str, color: str, curve: Curve) -> Line:
    return _line(name, color, list(zip(curve.x.tolist(), curve.y.tolist(), strict=True)), f"{curve.area:.3f}")


def _dots(name: str, color: str, bins: Sequence[ReliabilityBin], last: str) -> Line:
    filled = [b for b in bins if b.count]
    largest = max(b.count for b in filled)
    return Line(
        name=name,
        color=color,
        path="",
        dots=[(b.confidence, b.accuracy) for b in filled],
        # The area, not the diameter, is proportional to the count.
        sizes_px=[5 + 11 * math.sqrt(b.count / largest) for b in filled],
        last=last,
    )


def _line(name: str, color: str, points: list[Point], last: str) -> Line:
    shown = thin_out(points, _MAX_BUCKETS)
    path = "L".join(f"{1000 * x:.1f} {1000 * (1 - y):.1f}" for x, y in shown)
    return Line(name=name, color=color, path=f"M{path}", dots=[], last=last)


def _chart(title: str, lines: list[Line]) -> LineChart:
    ticks = [Tick(position=_UNIT.position(v), label=f"{v:.1f}") for v in np.linspace(0, 1, 6).tolist()]
    label = f"{title}: " + ", ".join(f"{line.name} {line.last}".strip() for line in lines)
    return LineChart(title=title, label=label, note="", x_ticks=ticks, y_ticks=ticks, lines=lines)
