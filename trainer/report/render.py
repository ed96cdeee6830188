"""The template filled in and written."""

import pathlib

import jinja2

from trainer import atomic
from trainer.data.storage import DatasetPath
from trainer.report import content, figures
from trainer.run_dir import RunDir


def write_report(
    run: RunDir, *, split: str = "test", out: pathlib.Path | None = None, dataset_dir: DatasetPath | None = None
) -> pathlib.Path:
    """Writes the report of `run` as one self-contained HTML file and returns its path.

    Args:
        split: an evaluated split; its metrics, confusions and images are shown.
        out: the file to write; `RUN/report.html` by default.
        dataset_dir: where the dataset lies now, if it has moved.

    Raises:
        RunError: not a run, or the split was not evaluated.
    """
    page = render(content.gather(run, split, dataset_dir))
    path = out or run.report_file
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, page)
    return path


def render(page: content.Content) -> str:
    """The HTML of a report. Everything that comes from outside, such as a class name, is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = format_percent
    template = environment.get_template("report.html.j2")
    return template.render(page=page, max_numbered_classes=figures.MAX_NUMBERED_CLASSES)


def format_percent(share: float) -> str:
    """One decimal, and never rounded to a certainty that is not there."""
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}"
