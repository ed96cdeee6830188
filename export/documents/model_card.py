"""`EXPORT/MODEL_CARD.md`: description, training, accuracy, artifacts and limits of the model.

Everything is derived from the run and the gate: no dates, no paths of a machine, the same text every time.
"""

import statistics

from export.documents.licence import describe_licence
from export.documents.markdown import render_markdown
from export.files.latency import LatencyReport
from export.files.parity import ParityReport
from export.files.provenance import Provenance
from export.files.signature import Signature

FILE_NAME = "MODEL_CARD.md"
_TEMPLATE_FILE = "model_card.md.j2"
_LATENCY_STARTS, _LATENCY_ENDS = "<!-- latency -->", "<!-- end of latency -->"
_NOT_MEASURED = "Not measured yet; `trainer bench export EXPORT --record` measures it and writes it here."


def render(signature: Signature, report: ParityReport, provenance: Provenance) -> str:
    """Return the text of the card."""
    return render_markdown(
        _TEMPLATE_FILE,
        signature=signature,
        report=report,
        provenance=provenance,
        latency=_as_section(_NOT_MEASURED),
        licence=describe_licence(provenance.backbone, provenance.weights_name),
    )


def with_latency(card: str, latency: LatencyReport) -> str:
    """Return the card with its section on latency replaced."""
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
    head = "| artifact | threads | ms per image | range | relative to the model |\n| --- | --- | --- | --- | --- |\n"
    words = f"One image at a time, median and range of {latency.num_rounds} rounds, on {latency.cpu}:\n\n"
    return words + head + "\n".join(rows)
