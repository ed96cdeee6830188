"""`trainer doctor --accept`: run the checks of the acceptance, and print their report."""

import datetime
import pathlib
from typing import TYPE_CHECKING, Final

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from trainer.console.output import note, print_answer, print_json

if TYPE_CHECKING:
    from trainer.acceptance.result import Report

DEFAULT_OUT: Final = "acceptance/<time>"
_STYLES: Final = {"passed": "green", "failed": "bold red", "not run": "yellow"}


def run_acceptance(
    *,
    gpus: int | None,
    small: bool,
    only: list[str],
    out: pathlib.Path | None,
    limit_secs: float | None,
    as_json: bool,
) -> None:
    """Run the checks and print the report; raise Exit with status 1 if this machine is not accepted."""
    from trainer.acceptance.checks import choose_checks
    from trainer.acceptance.result import REPORT_FILE
    from trainer.acceptance.run_checks import check_names, claim_directory, run_checks
    from trainer.acceptance.work import Work

    check_names(only)
    directory = (out or pathlib.Path("acceptance") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}").resolve()
    claim_directory(directory)
    work = Work(directory=directory, size_name="small" if small else "full", num_gpus_wanted=gpus)
    report = run_checks(work, choose_checks(only), note, limit_secs=limit_secs)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_answer(_table(report))
        print_answer(_verdict(report))
        print_answer(f"to send on: {directory / REPORT_FILE}")
    if not report.is_accepted:
        raise typer.Exit(1)


def _table(report: "Report") -> Table:
    title = f"{report.num_replicas} {report.device} replicas, size {report.size}, {report.secs:.0f} s"
    table = Table("check", "expected", "seen", "", title=title, box=box.SIMPLE_HEAD, header_style="bold")
    for result in report.checks:
        outcome = Text(result.outcome, style=_STYLES[result.outcome])
        seen = "\n".join(text for text in (result.seen, result.reason) if text)
        table.add_row(result.name, Text(result.expected), Text(seen), outcome)
    return table


def _verdict(report: "Report") -> Text:
    if report.failed:
        return Text.assemble(("not accepted: ", "bold red"), ", ".join(report.failed))
    if not report.is_complete:
        return Text.assemble(("not accepted: ", "bold red"), "interrupted before the last check")
    not_run = [result.name for result in report.checks if result.outcome == "not run"]
    return Text.assemble(("accepted", "bold green"), f", without {', '.join(not_run)}" if not_run else "")
