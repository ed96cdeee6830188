"""Fill in the template of the report, and write it."""

import pathlib
from collections.abc import Sequence

import jinja2

from trainer.data.dataset.storage import DatasetPath
from trainer.report import content, figures
from trainer.report.saliency import NUM_IMAGES
from trainer.run.run_dir import RunDir
from trainer.system import atomic


def write_report(
    run: RunDir,
    *,
    split: str = "test",
    out: pathlib.Path | None = None,
    dataset_dir: DatasetPath | None = None,
    num_saliency_images: int = NUM_IMAGES,
) -> pathlib.Path:
    """Write the report of `run` as one self-contained HTML file, and return its path.

    Args:
        run: The run.
        split: An evaluated split, whose metrics, confusions and images are shown.
        out: The file to write; `RUN/report.html` by default.
        dataset_dir: The location of the dataset now, if it has moved.
        num_saliency_images: The number of images with a heat map.

    Raises:
        RunError: `run` is not a run, or the split was not evaluated.
    """
    page = render(content.gather(run, split, dataset_dir, num_saliency_images))
    path = out or run.report_file
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, page)
    return path


def render(page: content.Content) -> str:
    """Return the HTML of a report; everything from outside, such as a class name, is escaped."""
    template = make_environment().get_template("report.html.j2")
    return template.render(page=page, max_numbered_classes=figures.MAX_NUMBERED_CLASSES)


def make_environment() -> jinja2.Environment:
    """Return the environment of the templates of this package, with their filters; all values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = format_percent
    environment.filters["figure"] = format_figure
    environment.filters["p_value"] = format_p_value
    environment.globals["scale"] = scale_from
    return environment


def scale_from(values: Sequence[float], low: float) -> list[float]:
    """Scale shares in [low, 1] to positions in [0, 1]."""
    return [(value - low) / (1 - low) for value in values]


def format_p_value(value: float) -> str:
    """Format a p-value with two digits."""
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def format_figure(value: float | None) -> str:
    """Format a number with three decimals, or as a dash if it is undefined."""
    return "\u2013" if value is None else f"{value:.3f}"


def format_percent(share: float) -> str:
    """Format a share with one decimal, without rounding it to 0% or 100%."""
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}"
