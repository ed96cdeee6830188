"""The figures of the report, as positions and shares in [0, 1] that the template draws.

A chart is an SVG that stretches to the width of the page, with labels that are text of the page: lines keep their width
and letters their size from a phone to a printed sheet, and the colours are those of the page.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainer.metrics.evaluation import ClassMetrics, Evaluation
from trainer.metrics.scores import Labels, Logits

# Two values in each bucket: a chart has no more pixels.
MAX_BUCKETS = 300
# Ratio of the largest to the smallest value from which a linear scale would show only the start.
LOG_SCALE_FROM_RATIO = 200
MAX_MATRIX_CLASSES = 50
MAX_NUMBERED_CLASSES = 25
MAX_LISTED_CLASSES = 40
NUM_WORST_CLASSES = 20
NUM_WORST_PAIRS = 12

# The coordinates of the paths; the SVG stretches them.
_SVG_UNITS = 1000

Point = tuple[float, float]
Format = Callable[[float], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tick:
    """A grid line: `position` from the left or from the bottom of the plot."""

    position: float
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One series. `dots` are (left, bottom); `color` is a class of the style sheet, `line-<color>`."""

    name: str
    color: str
    path: str
    dots: list[Point]
    last: str
    # Diameters of the dots; empty for the default of the style sheet.
    sizes_px: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineChart:
    """A chart of lines. `label` describes it to screen readers."""

    title: str
    label: str
    note: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps [low, high] to [0, 1], linearly or by the logarithm."""

    low: float
    high: float
    is_log: bool = False

    def position(self, value: float) -> float:
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the confusion matrix. `share` is relative to the examples of the true class, the row."""

    count: int
    share: float
    is_diagonal: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """A pair of classes that the model confuses. `share` is relative to the examples of the true class."""

    true: str
    predicted: str
    count: int
    share: float


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    format_value: Format,
    low: float | None = None,
    high: float | None = None,
    may_be_log: bool = False,
    colors: Mapping[str, str] | None = None,
) -> LineChart | None:
    """Draw `series` as a chart; return None if no value is finite.

    Args:
        title: The title.
        series: (step, value) by name, ascending in step.
        format_value: Formats the last values for the legend.
        low: Lower end of the vertical axis; None to fit the values.
        high: Upper end of the vertical axis; None to fit the values.
        may_be_log: Whether positive values that span `LOG_SCALE_FROM_RATIO` get a logarithmic axis.
        colors: Colours of the lines by name; None for the names themselves.
    """
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    values = [value for points in finite.values() for _, value in points]
    if not values:
        return None
    is_log = may_be_log and min(values) > 0 and max(values) / min(values) >= LOG_SCALE_FROM_RATIO
    y_values = log_ticks(min(values), max(values)) if is_log else _linear_ticks(values, low, high)
    y_scale = Scale(low=y_values[0], high=y_values[-1], is_log=is_log)
    last_step = max(step for points in finite.values() for step, _ in points)
    x_scale = Scale(low=0, high=max(last_step, 1))
    num_hidden = sum(len(points) for points in series.values()) - len(values)
    notes = ["logarithmic"] if is_log else []
    if num_hidden:
        notes.append(f"{num_hidden} not finite, not drawn")
    return LineChart(
        title=title,
        label=f"{title} against the step: "
        + ", ".join(f"{name} ends at {format_value(points[-1][1])}" for name, points in finite.items() if points),
        note=", ".join(notes),
        x_ticks=_labelled([v for v in nice_ticks(0, x_scale.high) if v <= x_scale.high], x_scale),
        y_ticks=_labelled(y_values, y_scale),
        lines=[
            _line(name, (colors or {}).get(name, name), points, x_scale, y_scale, format_value)
            for name, points in finite.items()
            if points
        ],
    )


def nice_ticks(low: float, high: float, max_ticks: int = 6) -> list[float]:
    """Return at most `max_ticks` multiples of 1, 2 or 5 times a power of ten that span [low, high]."""
    if high <= low:  # a single value: the axis goes from it to 0, or from 0 to 1
        low, high = (min(low, 0), max(low, 0)) if low else (0, 1)
    power = 10 ** math.floor(math.log10((high - low) / max_ticks))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        # A tolerance: 0.3 is 2.9999999999999996 times 0.1.
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first + 1 <= max_ticks:
            break
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return at most seven powers of ten that span [low, high], both positive."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 6))
    return [10.0**exponent for exponent in range(first, max(last, first + 1) + every, every)]


def thin_out(points: Sequence[Point], max_buckets: int = MAX_BUCKETS) -> list[Point]:
    """Keep the smallest and the largest value of each bucket of neighbours, so that no spike is lost."""
    if len(points) <= 2 * max_buckets:
        return list(points)
    kept = []
    for i in range(max_buckets):
        bucket = points[i * len(points) // max_buckets : (i + 1) * len(points) // max_buckets]
        kept += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    # The line begins with its first and ends with its last value.
    return sorted({points[0], *kept, points[-1]})


def confusion_cells(evaluation: Evaluation) -> list[list[Cell]] | None:
    """Return the cells [true][predicted]; None for more classes than a page can show, and for multi-label runs."""
    if evaluation.confusion_matrix is None or len(evaluation.class_names) > MAX_MATRIX_CLASSES:
        return None
    return [
        [
            Cell(count=count, share=count / max(sum(row), 1), is_diagonal=true == predicted)
            for predicted, count in enumerate(row)
        ]
        for true, row in enumerate(evaluation.confusion_matrix)
    ]


def worst_pairs(evaluation: Evaluation, labels: Labels, logits: Logits) -> list[ConfusedPair]:
    """Return the most frequent confusions, most frequent first; none for multi-label runs."""
    if labels.ndim == 2:
        return []
    names, predicted = evaluation.class_names, np.argmax(logits, axis=1)
    wrong, counts = np.unique((labels * len(names) + predicted)[labels != predicted], return_counts=True)
    pairs = [(*divmod(pair, len(names)), count) for pair, count in zip(wrong.tolist(), counts.tolist(), strict=True)]
    confused = [
        ConfusedPair(true=names[true], predicted=names[of], count=count, share=count / evaluation.classes[true].support)
        for true, of, count in pairs
    ]
    return sorted(confused, key=lambda pair: (-pair.count, -pair.share))[:NUM_WORST_PAIRS]


def list_classes(evaluation: Evaluation) -> tuple[list[ClassMetrics], list[ClassMetrics]]:
    """Split the classes into those that are listed and those that are folded: all in order, or the worst first.

    A class without examples in the split has no metrics, and is not among the worst.
    """
    if len(evaluation.classes) <= MAX_LISTED_CLASSES:
        return evaluation.classes, []
    ranked = sorted(evaluation.classes, key=lambda c: (c.support == 0, c.f1))
    return ranked[:NUM_WORST_CLASSES], ranked[NUM_WORST_CLASSES:]


def floor_of(values: Sequence[float]) -> float:
    """Return the start of an axis of shares, the tenth at or below the lowest."""
    return max(0.0, min(int(min(values, default=0.0) * 10) / 10, 0.9))


def format_number(value: float) -> str:
    """Format a number for axes and legends: 0.05, 12.5, 1,200, 40k, 1.5M, 3e-05."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


def _linear_ticks(values: list[float], low: float | None, high: float | None) -> list[float]:
    return nice_ticks(min(values) if low is None else low, max(values) if high is None else high)


def _labelled(values: list[float], scale: Scale) -> list[Tick]:
    return [Tick(position=scale.position(v), label=format_number(round(v, 12))) for v in values]


def _line(name: str, color: str, points: list[Point], x_scale: Scale, y_scale: Scale, format_value: Format) -> Line:
    placed = [(x_scale.position(step), y_scale.position(value)) for step, value in thin_out(points)]
    path = "L".join(f"{x * _SVG_UNITS:.1f} {(1 - y) * _SVG_UNITS:.1f}" for x, y in placed)
    return Line(
        name=name,
        color=color,
        path=f"M{path}",
        # Few points are shown as dots; many are a line.
        dots=placed if len(placed) <= 40 else [],
        last=format_value(points[-1][1]),
    )
