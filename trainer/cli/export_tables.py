"""The tables that `trainer export`, `verify` and `predict` print for a person."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from export.documents.markdown import format_bytes
from export.files.parity import Comparison, Figures, ParityReport
from export.gate.replay import GoldenResult
from export.prediction.predictions import ImagePrediction
from trainer.metrics.predictions import wilson_interval

_PASSED, _FAILED = Text("passed", style="green"), Text("FAILED", style="bold red")
_ALLOWED = Text("OVER BUDGET", style="bold yellow")


def parity_table(report: ParityReport) -> RenderableType:
    """Return a table with a row per comparison of an artifact with the reference; it fits into 80 columns."""
    table = _new_table("artifact", "size", "agree", "max diff", "accuracy", "ms/image")
    for comparison in report.comparisons:
        table.add_row(*_cells(comparison))
    accuracy = next((_accuracy(c.figures) for c in report.comparisons if c.figures), "")
    heading = (
        f"{report.num_images:,} of {report.num_images_in_split:,} {report.split} images of {report.dataset_name} "
        f"against {report.reference}{accuracy}"
    )
    return Group(heading, table, *(Text(remark) for remark in report.remarks()))


def golden_table(results: Sequence[GoldenResult], num_images: int) -> RenderableType:
    """Return a table with a row per artifact: its answers now against those when it was exported."""
    table = _new_table("artifact", "max diff", "allowed")
    for result in results:
        table.add_row(
            result.title,
            _difference(result.max_difference),
            f"{result.max_allowed:.0e}",
            _FAILED if result.failure else _PASSED,
        )
    return Group(f"{num_images} golden images, compared with the answers at the time of the export", table)


def prediction_table(predictions: Sequence[ImagePrediction]) -> RenderableType:
    """Return a table with a row per class, grouped by image; a multi-label model's predicted classes are marked."""
    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for prediction in predictions:
        image = prediction.image
        if prediction.error is not None:
            table.add_row(image, Text(prediction.error, style="bold red"), "-", "")
        for chosen in prediction.classes:
            label = chosen.label if chosen.label is not None else f"(class {chosen.class_id})"
            table.add_row(image, label, f"{chosen.probability:.4f}", "predicted" if chosen.predicted else "")
            image = ""
    return table


def _new_table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def _cells(comparison: Comparison) -> list[str | Text]:
    verdict = _ALLOWED if comparison.allowed else _FAILED if comparison.failure else _PASSED
    size, figures = format_bytes(comparison.num_bytes), comparison.figures
    if figures is None:
        return [comparison.title, size, "-", "-", "-", "-", verdict]
    return [
        comparison.title,
        size,
        f"{100 * figures.agreement:.2f}%",
        _difference(figures.max_difference),
        f"{figures.accuracy:.4f}",
        "-" if comparison.ms_per_image is None else f"{comparison.ms_per_image:.1f}",
        verdict,
    ]


def _accuracy(figures: Figures) -> str:
    num_correct = round(figures.reference_accuracy * figures.num_images)
    low, high = wilson_interval(num_correct, figures.num_images)
    return f", accuracy {figures.reference_accuracy:.4f} (95%: {low:.4f} to {high:.4f})"


def _difference(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.1e}"
