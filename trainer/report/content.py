"""What the report says, gathered from the files of a run directory."""

import dataclasses
import datetime
import json
import math
import pathlib
import statistics
from typing import Any

from trainer.config import Config
from trainer.data.storage import DatasetPath, parse_path
from trainer.errors import DataError, RunError
from trainer.metric_writers import read_metrics
from trainer.metrics.evaluation import ClassMetrics, Evaluation, load_arrays
from trainer.metrics.summary import TOP_K
from trainer.progress import format_duration
from trainer.report.figures import (
    Cell,
    ConfusedPair,
    LineChart,
    confusion_cells,
    format_number,
    line_chart,
    list_classes,
    worst_pairs,
)
from trainer.report.pictures import Picture, choose_mistakes, choose_samples, load_pictures
from trainer.report.seen import Seen, load_seen
from trainer.run_dir import RunDir, RunInfo

NUM_SAMPLES = 24
NUM_MISTAKES = 12

_XLA = {True: "XLA", False: "no XLA"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A headline figure and the small print below it."""

    name: str
    value: str
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    value: str
    is_changed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    name: str
    rows: list[Row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """Random samples and the surest mistakes; `missing` says in one sentence why there are none."""

    samples: list[Picture]
    mistakes: list[Picture]
    missing: str | None


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
    gallery: Gallery
    seen: Seen
    settings: list[Group]
    environment: list[Group]


def gather(run: RunDir, split: str, dataset_dir: DatasetPath | None = None) -> Content:
    """Reads everything of `run` that the report shows.

    Args:
        dataset_dir: where the dataset lies now; None: where the run was trained from. Without it, the report has
            no images and says why.

    Raises:
        RunError: not a run, the split was not evaluated, or one of the run's files is broken.
    """
    info, config = run.info(), run.config()
    evaluation = Evaluation.load(run.evaluation_dir, split)
    plan = _read_object(run.plan_file)
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
        pairs=worst_pairs(evaluation),
        listed_classes=listed_classes,
        other_classes=other_classes,
        gallery=_gallery(run, info, config, evaluation, dataset_dir),
        seen=load_seen(info, config, dataset_dir),
        settings=[*_settings(config), *_resolved(plan)],
        environment=_environment(_read_object(run.environment_file)),
    )


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file, as in a run copied in part."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise RunError(f"{path} is not readable JSON ({e}); copy it again from where the run was made") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a {type(value).__name__}, expected a JSON object; copy the run again")
    return value


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
            name=f"{evaluation.split} accuracy",
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
    if len(evaluation.class_names) > TOP_K:
        figures.append(
            Figure(name="Top-5 accuracy", value=f"{evaluation.top5_accuracy:.2%}", detail="label among the first five")
        )
    num_steps, steps_per_epoch = plan.get("num_train_steps"), plan.get("steps_per_epoch")
    epochs = f", epoch {evaluation.global_step / steps_per_epoch:.1f}" if steps_per_epoch else ""
    figures.append(
        Figure(
            name="Evaluated step",
            value=f"{evaluation.global_step:,}",
            detail=(f"of {num_steps:,}" if num_steps else "of the run") + epochs,
        )
    )
    figures.append(Figure(name="Training images", value=f"{info.num_train_examples:,}", detail=_skipped(entries)))
    return figures + _speed(entries)


def _speed(entries: list[dict[str, Any]]) -> list[Figure]:
    rates = [value for _, value in _points(entries, "train", "images_per_sec") if math.isfinite(value)]
    times = [entry["time"] for entry in entries if "time" in entry]
    figures = []
    if times:
        duration = format_duration(max(times) - min(times))
        figures.append(Figure(name="Wall time", value=duration, detail="first to last logged step"))
    if rates:
        figures.append(Figure(name="Images per second", value=f"{statistics.median(rates):,.0f}", detail="median"))
    return figures


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
        line_chart("Learning rate", train("learning_rate"), format_value=format_number, low=0),
        line_chart("Images per second", train("images_per_sec"), format_value=lambda v: f"{v:,.0f}", low=0),
    ]
    return [chart for chart in charts if chart is not None]


def _points(entries: list[dict[str, Any]], split: str, name: str) -> list[tuple[float, float]]:
    return [(e["step"], float(e[name])) for e in entries if e["split"] == split and name in e]


def _gallery(run: RunDir, info: RunInfo, config: Config, evaluation: Evaluation, dataset_dir: DatasetPath) -> Gallery:
    labels, logits = load_arrays(run.evaluation_dir, evaluation)
    chosen = [choose_samples(len(labels), NUM_SAMPLES), choose_mistakes(labels, logits, NUM_MISTAKES)]
    try:
        samples, mistakes = [
            load_pictures(info, dataset_dir, evaluation.split, indices, labels, logits, config.data.resize)
            for indices in chosen
        ]
    except DataError as e:
        return Gallery(samples=[], mistakes=[], missing=str(e))
    return Gallery(samples=samples, mistakes=mistakes, missing=None)


def _settings(config: Config) -> list[Group]:
    """Every setting by section, marked where it differs from the default."""
    defaults = Config().model_dump(mode="json")
    return [
        Group(
            name=section,
            rows=[_row(name, value, is_changed=value != defaults[section][name]) for name, value in values.items()],
        )
        for section, values in config.model_dump(mode="json").items()
    ]


def _resolved(plan: dict[str, Any]) -> list[Group]:
    """The single values of the plan, whatever a later version adds to them; lists are for programs."""
    rows = [_row(k, v) for k, v in plan.items() if k != "schema_version" and not isinstance(v, list | dict)]
    return [Group(name="plan", rows=rows)] if rows else []


def _environment(environment: dict[str, Any]) -> list[Group]:
    """A group for the single values and one for each object or list of objects."""
    groups: dict[str, list[Row]] = {"machine": []}
    for name, value in environment.items():
        if isinstance(value, dict):
            groups[name] = [_row(k, v) for k, v in value.items()]
        elif isinstance(value, list):
            groups[name] = [_row(str(i), v) for i, v in enumerate(value)]
        elif name != "schema_version":
            groups["machine"].append(_row(name, value))
    return [Group(name=name.replace("_", " "), rows=rows) for name, rows in groups.items() if rows]


def _row(name: str, value: Any, *, is_changed: bool = False) -> Row:
    if name.endswith("_bytes") and isinstance(value, int):
        return Row(name=name.removesuffix("_bytes"), value=f"{value / 2**30:.1f} GiB")
    return Row(name=name, value=_to_text(value), is_changed=is_changed)


def _to_text(value: Any) -> str:
    if isinstance(value, dict):
        rows = [_row(name, part) for name, part in value.items()]
        return ", ".join(f"{row.name} {row.value}" for row in rows)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
