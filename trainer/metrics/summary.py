"""All metrics of a split: the entry points for training and for `trainer evaluate`."""

import numpy as np

from trainer.metrics import bootstrap
from trainer.metrics.calibration import confidences, expected_calibration_error, fit_temperature, reliability
from trainer.metrics.evaluation import (
    AtThresholds,
    Calibration,
    ClassMetrics,
    Evaluation,
    Intervals,
    MacroAverage,
    Ranking,
    Tuning,
)
from trainer.metrics.predictions import (
    ClassCounts,
    Predictions,
    is_correct,
    predict,
    top_k_accuracy,
    wilson_interval,
)
from trainer.metrics.ranking import average_precisions, mean_of_known, micro_average_precision, roc_aucs
from trainer.metrics.scores import Floats, Labels, Logits, Task, check, mean_loss
from trainer.metrics.slices import Columns, slice_metrics
from trainer.metrics.thresholds import tune_thresholds

TOP_K = 5
# For more classes the confusion matrix would be hundreds of MB of zeros; it can be computed from the saved logits.
MAX_MATRIX_CLASSES = 2000
_POSITIVE = 1


def summarize(
    labels: Labels,
    logits: Logits,
    class_names: list[str],
    *,
    task: Task = "single_label",
    split: str,
    global_step: int,
    weights: str = "auto",
    dataset_hash: str | None = None,
    tuning: Tuning | None = None,
    columns: Columns | None = None,
    num_resamples: int = bootstrap.NUM_RESAMPLES,
) -> Evaluation:
    """Compute the metrics of a whole split.

    Labels are [n] int64 in [0, num_classes), or, for multi_label, [n, num_classes] of 0 or 1. Logits are
    [n, num_classes] float32, for binary (0, logit); among equal ones the lower index ranks first. `split` is named in
    errors; like `global_step`, `weights` and `dataset_hash` it is recorded in the result. `tuning` is that of the
    validation split at the same step; without it thresholds are 0.5 and there is no temperature. `columns` are to slice
    by (see `slice_metrics`); with `num_resamples` of 0 there are no intervals.

    Raises:
        DataError: the split is empty, or a label is out of range.
        TrainingError: a logit is NaN or infinite.
    """
    check(labels, logits, class_names, task, split, global_step)
    thresholds = np.array(tuning.thresholds) if tuning and tuning.thresholds and task == "multi_label" else None
    predicted = predict(logits, task, thresholds)
    num_correct = int(is_correct(labels, predicted).sum())
    counts = ClassCounts.of(labels, predicted, len(class_names))
    macro = counts.macro()
    classes = _class_metrics(labels, logits, class_names, task, counts, thresholds)
    return Evaluation(
        task=task,
        split=split,
        global_step=global_step,
        weights=weights,
        dataset_hash=dataset_hash,
        class_names=class_names,
        num_examples=len(labels),
        accuracy=num_correct / len(labels),
        accuracy_interval=wilson_interval(num_correct, len(labels)),
        top5_accuracy=None if task == "multi_label" else top_k_accuracy(labels, logits, TOP_K),
        loss=mean_loss(labels, logits, task),
        macro=MacroAverage(precision=macro.precision, recall=macro.recall, f1=macro.f1),
        ranking=_ranking(labels, logits, task, classes),
        at_thresholds=_at_thresholds(labels, logits, task, tuning),
        calibration=_calibration(labels, logits, task, tuning),
        tuning=tuning,
        intervals=_intervals(labels, logits, task, thresholds, num_resamples),
        classes=classes,
        slices=slice_metrics(labels, logits, task, columns or {}, thresholds),
        confusion_matrix=_confusion_matrix(labels, predicted, len(class_names)),
    )


def training_metrics(
    labels: Labels, logits: Logits, class_names: list[str], *, task: Task = "single_label", split: str, global_step: int
) -> dict[str, float]:
    """Compute the metrics logged during training: accuracy, loss and macro F1, and areas under curves by task.

    These are the areas of the positive class for binary, and mAP for multi_label, whose F1 is at thresholds of 0.5.
    Undefined metrics are omitted. Arguments and errors are as for `summarize`.
    """
    check(labels, logits, class_names, task, split, global_step)
    predicted = predict(logits, task)
    values: dict[str, float | None] = {
        "accuracy": float(is_correct(labels, predicted).mean()),
        "loss": mean_loss(labels, logits, task),
        "macro_f1": ClassCounts.of(labels, predicted, len(class_names)).macro().f1,
    }
    if task == "binary":
        values["roc_auc"] = roc_aucs(labels, logits, task)[_POSITIVE]
        values["average_precision"] = average_precisions(labels, logits, task)[_POSITIVE]
    elif task == "multi_label":
        values["average_precision"] = mean_of_known(average_precisions(labels, logits, task))
    return {name: value for name, value in values.items() if value is not None}


def tune(
    labels: Labels,
    logits: Logits,
    *,
    task: Task,
    global_step: int,
    weights: str = "auto",
    dataset_hash: str | None = None,
) -> Tuning:
    """Fit temperature and thresholds on the validation split."""
    thresholds = None
    if task == "multi_label":
        thresholds = tune_thresholds(labels, logits).tolist()
    elif task == "binary":
        thresholds = tune_thresholds(labels[:, None], _positive_logits(logits)).tolist()
    return Tuning(
        global_step=global_step,
        weights=weights,
        dataset_hash=dataset_hash,
        temperature=fit_temperature(labels, logits, task),
        thresholds=thresholds,
    )


def _positive_logits(logits: Logits) -> Logits:
    """Return the single logit of a binary task, [n, 1], from its two columns."""
    return logits[:, 1:] - logits[:, :1]


def _class_metrics(
    labels: Labels, logits: Logits, class_names: list[str], task: Task, counts: ClassCounts, thresholds: Floats | None
) -> list[ClassMetrics]:
    used: list[float | None] = [None] * len(class_names)
    if task == "multi_label":
        used = [0.5] * len(class_names) if thresholds is None else thresholds.tolist()
    precisions, recalls, f1s = counts.precision, counts.recall, counts.f1
    areas, average = roc_aucs(labels, logits, task), average_precisions(labels, logits, task)
    return [
        ClassMetrics(
            name=name,
            precision=float(precisions[k]),
            recall=float(recalls[k]),
            f1=float(f1s[k]),
            support=int(counts.support[k]),
            roc_auc=areas[k],
            average_precision=average[k],
            threshold=used[k],
        )
        for k, name in enumerate(class_names)
    ]


def _ranking(labels: Labels, logits: Logits, task: Task, classes: list[ClassMetrics]) -> Ranking:
    measured = classes[_POSITIVE:] if task == "binary" else classes
    return Ranking(
        roc_auc=mean_of_known([c.roc_auc for c in measured]),
        average_precision=mean_of_known([c.average_precision for c in measured]),
        micro_average_precision=micro_average_precision(labels, logits, task),
    )


def _at_thresholds(labels: Labels, logits: Logits, task: Task, tuning: Tuning | None) -> list[AtThresholds]:
    if task == "single_label":
        return []
    if task == "binary":
        # As a multi-label task with one class, the positive one.
        labels, logits = labels[:, None], _positive_logits(logits)
    sets = [np.full(logits.shape[1], 0.5)]
    if tuning and tuning.thresholds:
        sets.append(np.array(tuning.thresholds))
    return [_at(labels, predict(logits, "multi_label", thresholds), thresholds) for thresholds in sets]


def _at(labels: Labels, predicted: Predictions, thresholds: Floats) -> AtThresholds:
    counts = ClassCounts.of(labels, predicted, predicted.shape[1])
    average = counts.macro()
    # False positives and false negatives.
    num_wrong = int((counts.predicted + counts.support - 2 * counts.hits).sum())
    return AtThresholds(
        thresholds=thresholds.tolist(),
        accuracy=float(is_correct(labels, predicted).mean()),
        hamming_loss=num_wrong / predicted.size,
        precision=average.precision,
        recall=average.recall,
        f1=average.f1,
        micro_f1=counts.micro().f1,
    )


def _calibration(labels: Labels, logits: Logits, task: Task, tuning: Tuning | None) -> Calibration:
    bins = reliability(confidences(labels, logits, task))
    temperature = None if tuning is None else tuning.temperature
    scaled_bins = [] if temperature is None else reliability(confidences(labels, logits, task, temperature))
    return Calibration(
        ece=expected_calibration_error(bins),
        bins=bins,
        ece_with_temperature=expected_calibration_error(scaled_bins) if scaled_bins else None,
        loss_with_temperature=None if temperature is None else mean_loss(labels, logits, task, temperature),
        bins_with_temperature=scaled_bins,
    )


def _intervals(
    labels: Labels, logits: Logits, task: Task, thresholds: Floats | None, num_resamples: int
) -> Intervals | None:
    if num_resamples == 0:
        return None
    statistics = bootstrap.make_statistics(labels, logits, task, thresholds)
    resampled = bootstrap.resample(statistics, len(labels), num_resamples, num_classes=logits.shape[1])
    of_all = bootstrap.estimates(statistics, len(labels))
    found = {name: bootstrap.interval_around(of_all[name], values) for name, values in resampled.items()}
    return Intervals(
        num_resamples=num_resamples,
        accuracy=found["accuracy"],
        macro_f1=found["macro_f1"],
        average_precision=found.get("average_precision"),
        roc_auc=found.get("roc_auc"),
    )


def _confusion_matrix(labels: Labels, predicted: Predictions, num_classes: int) -> list[list[int]] | None:
    if labels.ndim == 2 or num_classes > MAX_MATRIX_CLASSES:
        return None
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    matrix: list[list[int]] = flat.reshape(num_classes, num_classes).tolist()
    return matrix
