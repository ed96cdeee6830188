"""`EXPORT/MODEL_CARD.md`: what the model is, how it was made, how well it does, and how it is called.

Everything in it follows from the run and the gate: no dates, no paths of a machine, the same text every time.
"""

import dataclasses
import importlib.resources
from collections.abc import Sequence

import jinja2

from export.parity import ParityReport
from export.signature import Signature
from trainer.metrics.evaluation import Evaluation

FILE_NAME = "MODEL_CARD.md"
_TEMPLATE_FILE = "model_card.md.j2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model comes from. `evaluations` are those of the exported step; `config_yaml` is the whole recipe."""

    run_name: str
    run_identity: str
    global_step: int
    which: str
    has_averages: bool = False
    backbone: str
    weights: str
    precision: str
    num_train_examples: int
    config_yaml: str
    evaluations: Sequence[Evaluation] = ()

    def describe(self) -> str:
        """The reference of a parity report in words."""
        weights = ", averages of its weights" if self.has_averages else ""
        return f"run {self.run_name}, step {self.global_step} ({self.which} checkpoint{weights}), float32"


def render(signature: Signature, report: ParityReport, provenance: Provenance) -> str:
    """The text of the card, Markdown."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown, not HTML; table cells go through `cell`
    )
    environment.filters["cell"] = _escape_cell
    environment.filters["size"] = format_bytes
    template = environment.from_string(
        importlib.resources.files("export").joinpath(_TEMPLATE_FILE).read_text(encoding="utf-8")
    )
    paths = {artifact.format: artifact.path for artifact in report.artifacts()}
    return template.render(signature=signature, report=report, provenance=provenance, paths=paths)


def format_bytes(num_bytes: int) -> str:
    """Such as "13.9 MB" (10^6 bytes)."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def _escape_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
