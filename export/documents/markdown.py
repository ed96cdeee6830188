"""Render the Markdown templates beside this module; deterministic."""

import importlib.resources
import re
from typing import Any

import jinja2


def render_markdown(template_file: str, **values: Any) -> str:
    """Render a template; unused values are ignored, missing ones are an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown, not HTML; table cells go through `cell`
    )
    environment.filters["cell"] = _escape_cell
    environment.filters["code"] = _format_code
    environment.filters["size"] = format_bytes
    environment.filters["shape"] = _format_shape
    template = importlib.resources.files("export.documents").joinpath(template_file).read_text(encoding="utf-8")
    return environment.from_string(template).render(**values)


def format_bytes(num_bytes: int) -> str:
    """Format a size, such as "13.9 MB" (10^6 bytes)."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def _escape_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _format_code(text: str) -> str:
    """Return `text` as a code span that may contain backticks (https://spec.commonmark.org/0.31.2/#code-spans)."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def _format_shape(shape: list[int | None]) -> str:
    return "[" + ", ".join("batch" if size is None else str(size) for size in shape) + "]"
