"""Write an HTML page that compares runs."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from trainer.console.progress import format_duration
from trainer.evaluation.compare_runs import ComparedRun, Comparison
from trainer.report.figures import LineChart, floor_of, line_chart
from trainer.report.render import make_environment
from trainer.report.rows import to_text
from trainer.run.metric_writers import read_metrics
from trainer.run.run_dir import RunDir
from trainer.system import atomic

COLORS = ("train", "validation", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownRun:
    """A run with its name and its colour on the page."""

    run: ComparedRun
    title: str
    color: str
    training_time: str
    speed: str


def write_comparison(comparison: Comparison, runs: Sequence[RunDir], out: pathlib.Path) -> None:
    """Write the page of `comparison`, whose runs are `runs`, in the same order.

    Raises:
        RunError: A log is damaged.
    """
    shown = [
        ShownRun(run=run, title=title, color=color, training_time=_time(run), speed=_speed(run))
        for run, title, color in zip(comparison.runs, _titles(comparison.runs), COLORS, strict=False)
    ]
    template = make_environment().get_template("compare.html.j2")
    page = template.render(
        comparison=comparison,
        runs=shown,
        charts=_charts(runs, shown),
        settings=[(s.name, [to_text(value) for value in s.values]) for s in comparison.settings],
        low=floor_of([run.accuracy_interval[0] for run in comparison.runs]),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out, page)


def _titles(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the names of the runs, or their paths if two names are equal."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.path for run in runs]


def _charts(runs: Sequence[RunDir], shown: Sequence[ShownRun]) -> list[LineChart]:
    """Draw the curves of all runs, a chart for each metric."""
    logs = [read_metrics(run.metrics_file) if run.metrics_file.is_file() else [] for run in runs]
    colors = {run.title: run.color for run in shown}

    def of(split: str, metric: str) -> dict[str, list[tuple[float, float]]]:
        return {run.title: _points(log, split, metric) for run, log in zip(shown, logs, strict=True)}

    charts = [
        line_chart(
            "Validation accuracy", of("validation", "accuracy"), format_value=lambda v: f"{v:.2%}", high=1,
            colors=colors,
        ),
        line_chart(
            "Validation loss", of("validation", "loss"), format_value=lambda v: f"{v:.4f}", low=0, may_be_log=True,
            colors=colors,
        ),
        line_chart(
            "Training loss", of("train", "loss"), format_value=lambda v: f"{v:.4f}", low=0, may_be_log=True,
            colors=colors,
        ),
    ]  # fmt: skip
    return [chart for chart in charts if chart is not None]


def _points(log: list[dict[str, Any]], split: str, metric: str) -> list[tuple[float, float]]:
    return [(e["step"], float(e[metric])) for e in log if e["split"] == split and metric in e]


def _time(run: ComparedRun) -> str:
    return "\u2013" if run.cost.training_secs is None else format_duration(run.cost.training_secs)


def _speed(run: ComparedRun) -> str:
    return "\u2013" if run.cost.images_per_sec is None else f"{run.cost.images_per_sec:,.0f}"
