"""Compare runs on the same examples: their metrics, and whether each differs from the first."""

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import pydantic

from trainer.config.config import Config
from trainer.errors import RunError
from trainer.metrics.bootstrap import Statistic, make_statistics
from trainer.metrics.comparison import holm_correction, mcnemar_p_value, paired_differences
from trainer.metrics.evaluation import Evaluation, Interval, load_arrays
from trainer.metrics.predictions import is_correct, predict
from trainer.metrics.scores import Bools, Labels, Task
from trainer.run.cost import Cost, read_cost
from trainer.run.run_dir import RunDir

SCHEMA_VERSION: Final = 1
MAX_RUNS = 8

How = Literal["scratch", "frozen", "fine-tuned"]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class MetricDifference(_Model):
    """The difference of a metric from the first run, with the 95% interval of paired resamples of the examples."""

    metric: str
    value: float | None
    interval: Interval | None


class Difference(_Model):
    """The difference from the first run.

    Attributes:
        p_value: Of McNemar's exact test of the accuracies.
        corrected_p_value: After Holm's correction for all comparisons.
    """

    metrics: list[MetricDifference]
    p_value: float
    corrected_p_value: float

    def of(self, metric: str) -> MetricDifference:
        return next(m for m in self.metrics if m.metric == metric)


class ComparedRun(_Model):
    """One run. `difference` is null for the first; `how` says what was trained, from which weights."""

    path: str
    name: str
    how: How
    global_step: int
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    average_precision: float | None
    roc_auc: float | None
    loss: float
    ece: float
    cost: Cost
    difference: Difference | None


class SettingDifference(_Model):
    """A setting that differs between the runs, and its value in each."""

    name: str
    values: list[Any]


class Comparison(_Model):
    """The document of `trainer compare --json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: Task
    split: str
    num_examples: int
    dataset_hash: str | None
    runs: list[ComparedRun]
    settings: list[SettingDifference]


class _Measured:
    """An evaluated run with the inputs of the statistical tests."""

    def __init__(self, run: RunDir, split: str) -> None:
        self.run = run
        self.evaluation = e = Evaluation.load(run.evaluation_dir, split)
        self.labels, logits = load_arrays(run.evaluation_dir, e)
        is_tuned = e.task == "multi_label" and e.tuning is not None and e.tuning.thresholds is not None
        thresholds = np.array(e.tuning.thresholds) if is_tuned and e.tuning else None
        self.statistics: dict[str, Statistic] = dict(make_statistics(self.labels, logits, e.task, thresholds))
        self.correct: Bools = is_correct(self.labels, predict(logits, e.task, thresholds))


def compare_runs(runs: Sequence[RunDir], split: str = "test") -> Comparison:
    """Compare the first of the evaluated runs with each of the others.

    Raises:
        RunError: There are too few or too many runs, one is given twice or not evaluated, or their examples differ.
    """
    if not 2 <= len(runs) <= MAX_RUNS:
        raise RunError(f"{len(runs)} runs were given; compare from 2 to {MAX_RUNS}")
    paths = [run.path.resolve() for run in runs]
    twice = [run.path for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise RunError(f"the run {twice[0]} was given twice; compare it with another one")
    infos = [run.info() for run in runs]
    measured = [_Measured(run, split) for run in runs]
    for other in measured[1:]:
        _check_same_examples(measured[0], other)
    first = measured[0]
    p_values = [mcnemar_p_value(first.correct, other.correct) for other in measured[1:]]
    corrected = holm_correction(p_values)
    differences: list[Difference | None] = [None]
    for other, p_value, corrected_p_value in zip(measured[1:], p_values, corrected, strict=True):
        found = paired_differences(first.statistics, other.statistics, len(first.labels))
        metrics = [MetricDifference(metric=m, value=d.value, interval=d.interval) for m, d in found.items()]
        differences.append(Difference(metrics=metrics, p_value=p_value, corrected_p_value=corrected_p_value))
    return Comparison(
        task=first.evaluation.task,
        split=split,
        num_examples=first.evaluation.num_examples,
        dataset_hash=first.evaluation.dataset_hash,
        runs=[
            _compared(m, info.name, how_trained(info.weights, m.run.config()), difference)
            for m, info, difference in zip(measured, infos, differences, strict=True)
        ],
        settings=setting_differences([run.config() for run in runs]),
    )


def how_trained(weights: str, config: Config) -> How:
    """Classify what a run trained, from which weights (`RunInfo.weights`, as resolved)."""
    if weights == "none":
        return "scratch"
    is_frozen = config.model.trainable == "head" and not config.train.unfreeze
    return "frozen" if is_frozen else "fine-tuned"


def setting_differences(configs: Sequence[Config]) -> list[SettingDifference]:
    """Return the settings that differ between the configurations, as section.name."""
    dumps = [config.model_dump(mode="json") for config in configs]
    differing = []
    for section, settings in dumps[0].items():
        for name in settings:
            values = [dump[section][name] for dump in dumps]
            if any(value != values[0] for value in values):
                differing.append(SettingDifference(name=f"{section}.{name}", values=values))
    return differing


def _check_same_examples(first: _Measured, other: _Measured) -> None:
    of_first, of_other = first.evaluation, other.evaluation
    if of_first.class_names != of_other.class_names or of_first.task != of_other.task:
        what = "has other classes than, or another task than,"
    elif of_first.dataset_hash != of_other.dataset_hash:
        what = "was evaluated on another dataset than"
    elif not _same_labels(first.labels, other.labels):
        what = f"has other labels in the split {of_first.split!r} than"
    else:
        return
    raise RunError(
        f"the run {other.run.path} {what} {first.run.path}; compare runs of one dataset, or evaluate them again on "
        f"one with: trainer evaluate RUN --split {of_first.split} --data DATASET"
    )


def _same_labels(first: Labels, other: Labels) -> bool:
    return first.shape == other.shape and bool((first == other).all())


def _compared(measured: _Measured, name: str, how: How, difference: Difference | None) -> ComparedRun:
    e = measured.evaluation
    return ComparedRun(
        path=str(measured.run.path),
        name=name,
        how=how,
        global_step=e.global_step,
        accuracy=e.accuracy,
        accuracy_interval=e.accuracy_interval,
        macro_f1=e.macro.f1,
        average_precision=e.ranking.average_precision,
        roc_auc=e.ranking.roc_auc,
        loss=e.loss,
        ece=e.calibration.ece,
        cost=read_cost(measured.run),
        difference=difference,
    )
