"""`trainer bench export`: size and latency of the artifacts of an export."""

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.options import ExportArgument, TrustOption
from trainer.console.output import JsonOption, print_answer, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from export.files.latency import LatencyReport


def bench_export(
    export: ExportArgument,
    run: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="The run that the export was made from; its Keras model is measured too.", show_default="not measured"
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Threads, each on a core of its own; repeatable.", show_default="1 and 2"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often every artifact is measured.")] = 5,
    record: Annotated[
        bool, typer.Option("--record", help="Write the figures into the export: latency.json and its model card.")
    ] = False,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Measure size and latency of every artifact of an export in its own runtime, one image at a time.

    The artifacts take turns. The table has the median and the range over the rounds; [bold]--run[/] adds the model of
    the run.
    """
    from export.files.checksums import Checksums

    Checksums.load(export)  # refuse a wrong directory before anything starts

    from export.gate.measure_latency import check_run, measure_latency, record_latency

    if run is not None:
        check_run(export, run)
    report = measure_latency(export, run, num_threads=threads or [1, 2], num_rounds=rounds)
    if record:
        record_latency(export, report)
    if json_:
        print_json(report.model_dump(mode="json"))
    else:
        print_answer(_table(report))


def _table(report: "LatencyReport") -> "Table":
    import statistics

    from rich.table import Table

    from export.documents.markdown import format_bytes

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), title=f"{report.num_rounds} rounds on {report.cpu}")
    table.add_column("artifact", no_wrap=True)
    for column in ("size", "threads", "ms/image", "range", "of model"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.title,
            format_bytes(row.num_bytes),
            str(row.num_threads),
            f"{row.median_ms:.2f}",
            f"{min(row.ms):.2f}-{max(row.ms):.2f}",
            f"{statistics.median(row.relative):.2f}" if row.relative else "-",
        )
    return table
