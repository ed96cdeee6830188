"""Metrics of slices of a split: the examples that share a value in some column."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from trainer.metrics.evaluation import Slice
from trainer.metrics.predictions import ClassCounts, is_correct, predict, wilson_interval
from trainer.metrics.ranking import average_precisions, mean_of_known
from trainer.metrics.scores import Floats, Labels, Logits, Task, mean_loss

# Numbers with more values than this are cut into quarters of the examples.
MAX_NUMBERS = 8
# The most frequent values of a column; the others share one slice.
MAX_VALUES = 20

Columns = Mapping[str, Sequence[str]]


def slice_metrics(
    labels: Labels, logits: Logits, task: Task, columns: Columns, thresholds: Floats | None = None
) -> list[Slice]:
    """Measure each value of each column, in the order of the values.

    A column holds the value of every example, [n]; "" for none. Other arguments are as for `predict`.
    """
    slices = []
    for column, values in columns.items():
        names, groups = group_values(values)
        for group, name in enumerate(names):
            rows = np.flatnonzero(groups == group)
            slices.append(_measure(labels[rows], logits[rows], task, column, name, thresholds))
    return slices


def group_values(values: Sequence[str]) -> tuple[list[str], np.ndarray]:  # type: ignore[type-arg]
    """Return the names of the groups in order, and the group of every value, [n].

    Each value is a group, except that more than `MAX_NUMBERS` numbers are cut into quartiles, and that of more than
    `MAX_VALUES` other values the rare ones share a group.
    """
    counts = collections.Counter(values)
    numbers = {value: number for value in counts if (number := _number(value)) is not None}
    if numbers and set(counts) <= {*numbers, ""}:
        if len(numbers) > MAX_NUMBERS:
            return _quartiles(values, numbers)
        ordered = [*sorted(numbers, key=lambda value: numbers[value]), *([""] if "" in counts else [])]
    else:
        ordered = sorted(counts)
    if len(ordered) > MAX_VALUES:
        ordered = sorted(value for value, _ in sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:MAX_VALUES])
    index = {value: i for i, value in enumerate(ordered)}
    groups = np.array([index.get(value, len(ordered)) for value in values])
    num_rare = len(counts) - len(ordered)
    return [value or "(none)" for value in ordered] + ([f"{num_rare} other values"] if num_rare else []), groups


def _quartiles(values: Sequence[str], numbers: Mapping[str, float]) -> tuple[list[str], np.ndarray]:  # type: ignore[type-arg]
    known = np.array([numbers.get(value, np.nan) for value in values])
    edges = np.unique(np.nanpercentile(known, [0, 25, 50, 75, 100]))
    group = np.clip(np.searchsorted(edges, known, side="right") - 1, 0, len(edges) - 2)
    names = [
        f"{low:g} to {'' if last else 'under '}{high:g}"
        for low, high, last in zip(edges[:-1], edges[1:], [*[False] * (len(edges) - 2), True], strict=True)
    ]
    if np.isnan(known).any():
        group[np.isnan(known)] = len(names)
        names.append("(none)")
    return names, group


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _measure(labels: Labels, logits: Logits, task: Task, column: str, value: str, thresholds: Floats | None) -> Slice:
    predicted = predict(logits, task, thresholds)
    correct = is_correct(labels, predicted)
    precisions = average_precisions(labels, logits, task)
    return Slice(
        column=column,
        value=value,
        num_examples=len(labels),
        accuracy=float(correct.mean()),
        accuracy_interval=wilson_interval(int(correct.sum()), len(labels)),
        macro_f1=ClassCounts.of(labels, predicted, logits.shape[1]).macro().f1,
        average_precision=precisions[1] if task == "binary" else mean_of_known(precisions),
        loss=mean_loss(labels, logits, task),
    )
