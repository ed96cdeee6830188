"""The content of the report, read from the files of a run directory."""

import dataclasses
import datetime
import math
import pathlib
from typing import Any

from trainer.config.config import Config
from trainer.console.progress import format_duration
from trainer.data.dataset.storage import DatasetPath, parse_path
from trainer.data.sampling.epochs import Epochs
from trainer.metrics.evaluation import ClassMetrics, Evaluation, load_arrays
from trainer.metrics.summary import TOP_K
from trainer.report.figures import (
    Cell,
    ConfusedPair,
    LineChart,
    confusion_cells,
    floor_of,
    format_number,
    line_chart,
    list_classes,
    worst_pairs,
)
from trainer.report.gallery import Gallery, load_gallery
from trainer.report.rows import (
    ChangedSetting,
    Group,
    Row,
    changed_settings,
    environment_groups,
    plan_groups,
    setting_groups,
)
from trainer.report.saliency import NUM_IMAGES as NUM_SALIENCY_IMAGES
from trainer.report.saliency import Saliency, load_saliency
from trainer.report.seen import Seen, load_seen
from trainer.report.unit_charts import ranking_charts, reliability_chart
from trainer.run.cost import Cost, read_cost, read_object
from trainer.run.metric_writers import read_metrics
from trainer.run.run_dir import RunDir, RunInfo

_XLA = {True: "XLA", False: "no XLA"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A headline figure, and the detail below it."""

    name: str
    value: str
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that the template shows."""

    info: RunInfo
    evaluation: Evaluation
    created: str
    facts: list[Row]
    headline: list[Figure]
    charts: list[LineChart]
    matrix: list[list[Cell]] | None
    pairs: list[ConfusedPair]
    listed_classes: list[ClassMetrics]
    other_classes: list[ClassMetrics]
    reliability: LineChart
    ranking: list[LineChart]
    gallery: Gallery
    saliency: Saliency
    seen: Seen
    slices_from: float
    cost: list[Row]
    changed: list[ChangedSetting]
    settings: list[Group]
    environment: list[Group]


def gather(
    run: RunDir, split: str, dataset_dir: DatasetPath | None = None, num_saliency_images: int = NUM_SALIENCY_IMAGES
) -> Content:
    """Read everything of `run` that the report shows.

    `dataset_dir` is the location of the dataset now, None if it has not moved; without the dataset the report has no
    images, and says why. `num_saliency_images` images get a heat map.

    Raises:
        RunError: `run` is not a run, the split was not evaluated, or a file of the run is damaged.
    """
    info, config = run.info(), run.config()
    evaluation = Evaluation.load(run.evaluation_dir, split)
    labels, logits = load_arrays(run.evaluation_dir, evaluation)
    plan = read_object(run.plan_file)
    entries = read_metrics(run.metrics_file) if run.metrics_file.is_file() else []
    listed_classes, other_classes = list_classes(evaluation)
    dataset_dir = dataset_dir or parse_path(info.dataset_dir)
    return Content(
        info=info,
        evaluation=evaluation,
        created=f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        facts=_facts(info, config, plan),
        headline=_headline(info, evaluation, entries, plan),
        charts=_charts(entries),
        matrix=confusion_cells(evaluation),
        pairs=worst_pairs(evaluation, labels, logits),
        listed_classes=listed_classes,
        other_classes=other_classes,
        reliability=reliability_chart(evaluation),
        ranking=ranking_charts(evaluation, labels, logits),
        gallery=load_gallery(info, config, evaluation, labels, logits, dataset_dir),
        saliency=load_saliency(run, config, evaluation, labels, logits, dataset_dir, num_saliency_images),
        seen=load_seen(info, config, dataset_dir),
        slices_from=floor_of([s.accuracy_interval[0] for s in evaluation.slices]),
        cost=_cost(read_cost(run), info, entries),
        changed=changed_settings(config),
        settings=[*setting_groups(config), *plan_groups(plan)],
        environment=environment_groups(read_object(run.environment_file)),
    )


def _facts(info: RunInfo, config: Config, plan: dict[str, Any]) -> list[Row]:
    trained = {"all": "fine-tuned", "head": "head only"}.get(config.model.trainable, config.model.trainable)
    rows = [
        Row(name="Backbone", value=f"{config.model.backbone}, {trained}"),
        Row(name="Weights", value=info.weights),
        Row(name="Dataset", value=pathlib.Path(info.dataset_dir).name),
        Row(name="Classes", value=f"{len(info.class_names):,}"),
        Row(name="Image size", value=f"{info.image_size_px} px, {config.data.resize}"),
        Row(name="Precision", value=_join(info.precision, _XLA.get(plan.get("jit_compile", ""), ""))),
    ]
    if "strategy" in plan:
        noun = f"{str(plan.get('device', '')).upper()} replica".strip()
        replicas = _plural(plan["num_replicas"], noun) if "num_replicas" in plan else ""
        rows.append(Row(name="Strategy", value=_join(str(plan["strategy"]), replicas)))
    return [*rows, Row(name="Global batch", value=f"{plan.get('global_batch_size', config.train.global_batch_size):,}")]


def _headline(
    info: RunInfo, evaluation: Evaluation, entries: list[dict[str, Any]], plan: dict[str, Any]
) -> list[Figure]:
    low, high = evaluation.accuracy_interval
    num_wrong = evaluation.num_examples - round(evaluation.accuracy * evaluation.num_examples)
    figures = [
        Figure(
            name=f"{evaluation.split} {'exact match' if evaluation.task == 'multi_label' else 'accuracy'}",
            value=f"{evaluation.accuracy:.2%}",
            detail=f"95% interval {low:.2%} to {high:.2%}",
        ),
        Figure(
            name=f"{evaluation.split} images",
            value=f"{evaluation.num_examples:,}",
            detail=f"{num_wrong:,} classified wrongly",
        ),
        Figure(name="Loss", value=f"{evaluation.loss:.4f}", detail=f"macro F1 {evaluation.macro.f1:.4f}"),
    ]
    figures += _areas(evaluation)
    if evaluation.top5_accuracy is not None and len(evaluation.class_names) > TOP_K:
        figures.append(
            Figure(name="Top-5 accuracy", value=f"{evaluation.top5_accuracy:.2%}", detail="label among the first five")
        )
    num_steps, epochs = plan.get("num_train_steps"), _epochs_of(plan)
    figures.append(
        Figure(
            name="Evaluated step",
            value=f"{evaluation.global_step:,}",
            detail=(f"of {num_steps:,}" if num_steps else "of the run")
            + (f", epoch {epochs.done_after(evaluation.global_step):.1f}" if epochs else ""),
        )
    )
    figures.append(Figure(name="Training images", value=f"{info.num_train_examples:,}", detail=_skipped(entries)))
    return figures


def _epochs_of(plan: dict[str, Any]) -> Epochs | None:
    """Return the epochs of the run; None if it was copied without its plan."""
    try:
        return Epochs(
            num_examples=plan["num_train_examples"],
            batch_size=plan["global_batch_size"],
            num_train_steps=plan["num_train_steps"],
            num_positions=plan["num_positions"],
        )
    except KeyError:
        return None


def _areas(evaluation: Evaluation) -> list[Figure]:
    """Return average precision and the area under the ROC curve, with their intervals."""
    ranking, intervals = evaluation.ranking, evaluation.intervals
    shown = [
        (
            "Average precision" if evaluation.task == "binary" else "Mean average precision",
            ranking.average_precision,
            "average_precision",
        ),
        ("ROC AUC", ranking.roc_auc, "roc_auc"),
    ]
    figures = []
    for name, value, metric in shown:
        interval = getattr(intervals, metric) if intervals else None
        detail = f"95% interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else "no interval"
        if value is not None:
            figures.append(Figure(name=name, value=f"{value:.4f}", detail=detail))
    return figures


def _cost(cost: Cost, info: RunInfo, entries: list[dict[str, Any]]) -> list[Row]:
    """Return the known costs of the run."""
    if not entries:
        return []
    rows = []
    if cost.training_secs is not None:
        rows.append(Row(name="Time", value=f"{format_duration(cost.training_secs)}, first to last logged step"))
    if cost.images_per_sec is not None:
        rows.append(Row(name="Images per second", value=f"{cost.images_per_sec:,.0f}, median"))
        fraction = info.num_train_examples / cost.images_per_sec
        rows.append(Row(name="One pass over the training images", value=format_duration(fraction)))
    if cost.num_steps is not None:
        rows.append(Row(name="Steps", value=f"{cost.num_steps:,}"))
    known = {"Replicas": cost.replicas, "Machine": cost.machine}
    return rows + [Row(name=name, value=value) for name, value in known.items() if value]


def _skipped(entries: list[dict[str, Any]]) -> str:
    num_skipped = sum(int(value) for _, value in _points(entries, "train", "skipped_steps") if math.isfinite(value))
    return f"{_plural(num_skipped, 'step')} skipped, gradient not finite" if num_skipped else "no step skipped"


def _charts(entries: list[dict[str, Any]]) -> list[LineChart]:
    def both(name: str) -> dict[str, list[tuple[float, float]]]:
        return {split: _points(entries, split, name) for split in ("train", "validation", "validation_raw")}

    def train(name: str) -> dict[str, list[tuple[float, float]]]:
        return {"train": _points(entries, "train", name)}

    charts = [
        line_chart("Loss", both("loss"), format_value=lambda v: f"{v:.4f}", low=0, may_be_log=True),
        line_chart("Accuracy", both("accuracy"), format_value=lambda v: f"{v:.2%}", high=1),
        line_chart("Mean average precision", both("average_precision"), format_value=lambda v: f"{v:.4f}", high=1),
        line_chart("Learning rate", train("learning_rate"), format_value=format_number, low=0),
        line_chart("Images per second", train("images_per_sec"), format_value=lambda v: f"{v:,.0f}", low=0),
    ]
    return [chart for chart in charts if chart is not None]


def _points(entries: list[dict[str, Any]], split: str, name: str) -> list[tuple[float, float]]:
    return [(e["step"], float(e[name])) for e in entries if e["split"] == split and name in e]


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
