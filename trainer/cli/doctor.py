"""`trainer doctor`: what this machine can run, and what to do first."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from trainer.console.output import JsonOption, print_answer, print_json

if TYPE_CHECKING:
    from trainer.doctor.finding import Finding

_STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "problem": "bold red"}


def doctor(
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs the launch needs.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="The strategy of the launch; with horovod, Horovod must work.")
    ] = None,
    hosts: Annotated[
        str | None, typer.Option(metavar="A:8,B:8", help="Also check these hosts, reached as a launch would.")
    ] = None,
    ssh_option: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="An option of ssh, such as -p2222; repeatable."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Check what this machine can run: the first thing to do, then a verdict and a fix for each part.

    Checks the GPUs, their driver and the CUDA libraries of TensorFlow, XLA, NCCL, Horovod and MPI, cores, memory,
    shared memory, ports and the clock; with --hosts, also those hosts. The exit status is 1 if training, or what was
    asked for, cannot run.
    """
    from trainer.distribute.launchers.hosts import parse_hosts

    parsed = parse_hosts(hosts) if hosts else []

    from trainer.system import tf_runtime

    tf_runtime.configure()

    from trainer.doctor.finding import first_step
    from trainer.doctor.frameworks import check_frameworks
    from trainer.doctor.gpus import check_gpus
    from trainer.doctor.machine import check_machine
    from trainer.doctor.other_hosts import check_hosts

    findings = [
        *check_frameworks(
            wants_horovod=strategy == "horovod", wants_gpus=gpus is not None or bool(tf_runtime.list_gpus())
        ),
        *check_gpus(gpus),
        *check_machine(),
        *check_hosts(parsed, ssh_option or []),
    ]
    is_well = all(finding.verdict != "problem" for finding in findings)
    if json_:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print_json({"is_well": is_well, "first_step": first_step(findings), "findings": listed})
    else:
        print_answer(Text.assemble(("do first: ", "bold"), first_step(findings)))
        print_answer(_table(findings))
    if not is_well:
        raise typer.Exit(1)


def _table(findings: "list[Finding]") -> Table:
    table = Table("", "part", "found", "fix", box=box.SIMPLE_HEAD, header_style="bold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        table.add_row(Text(finding.verdict, style=style), finding.check, Text(finding.found), Text(finding.fix))
    return table
