"""`EXPORT/MODEL_CARD.md`: what the model is, how it was made, how well it does, and how it is called.

Everything in it follows from the run and the gate: no dates, no paths of a machine, the same text every time.
"""

import dataclasses
import statistics
from collections.abc import Sequence

from export.latency import LatencyReport
from export.licence import describe_licence
from export.markdown import render_markdown
from export.parity import ParityReport
from export.signature import Signature
from trainer.checkpoint import Which
from trainer.metrics.evaluation import Evaluation

FILE_NAME = "MODEL_CARD.md"
_TEMPLATE_FILE = "model_card.md.j2"
_LATENCY_STARTS, _LATENCY_ENDS = "<!-- latency -->", "<!-- end of latency -->"
_NOT_MEASURED = "Not measured yet; `trainer bench export EXPORT --record` does, and writes it here."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model comes from. `evaluations` are those of the exported step; `config_yaml` is the whole recipe."""

    run_name: str
    run_identity: str
    global_step: int
    which: Which
    has_averages: bool = False
    backbone: str
    weights: str
    precision: str
    num_train_examples: int
    config_yaml: str
    evaluations: Sequence[Evaluation] = ()

    @property
    def weights_name(self) -> str:
        """What training began with; a file without where it lay, which says something of one machine alone."""
        return self.weights.rpartition("/")[2]

    def describe(self) -> str:
        """The reference of a parity report in words."""
        weights = ", averages of its weights" if self.has_averages else ""
        return f"run {self.run_name}, step {self.global_step} ({self.which} checkpoint{weights}), float32"


def render(signature: Signature, report: ParityReport, provenance: Provenance) -> str:
    """The text of the card, Markdown."""
    return render_markdown(
        _TEMPLATE_FILE,
        signature=signature,
        report=report,
        provenance=provenance,
        latency=_as_section(_NOT_MEASURED),
        licence=describe_licence(provenance.backbone, provenance.weights_name),
    )


def with_latency(card: str, latency: LatencyReport) -> str:
    """The card with what was measured of the artifacts in the place of what was said of their latency before."""
    start, end = card.index(_LATENCY_STARTS), card.index(_LATENCY_ENDS) + len(_LATENCY_ENDS)
    return card[:start] + _as_section(_latency_table(latency)) + card[end:]


def _as_section(text: str) -> str:
    return f"{_LATENCY_STARTS}\n{text}\n{_LATENCY_ENDS}"


def _latency_table(latency: LatencyReport) -> str:
    rows = [
        f"| {row.title} | {row.num_threads} | {row.median_ms:.2f} | {min(row.ms):.2f} to {max(row.ms):.2f} | "
        + (f"{statistics.median(row.relative):.2f} |" if row.relative else "- |")
        for row in latency.rows
    ]
    head = "| artifact | threads | ms an image | range | of the model's time |\n| --- | --- | --- | --- | --- |\n"
    words = f"One image at a time, median and range of {latency.num_rounds} rounds, on {latency.cpu}:\n\n"
    return words + head + "\n".join(rows)
