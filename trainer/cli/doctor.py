"""`trainer doctor`: what this machine can run, and what is wrong."""

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
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs a launch would want.")] = None,
    strategy: Annotated[str | None, typer.Option(help="The strategy of the launch; horovod must then work.")] = None,
    hosts: Annotated[
        str | None, typer.Option(metavar="A:8,B:8", help="Ask these hosts too, as a launch would reach them.")
    ] = None,
    ssh_option: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Given to ssh before the host, such as -p2222; repeatable."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Say what this machine can run: a verdict on each part, and the fix.

    Looks at GPUs, the driver and the CUDA libraries that TensorFlow wants,
    XLA, NCCL, Horovod and MPI, cores, memory, shared memory, ports and the
    clock; with --hosts, at the way to each. Exits with 1 where something
    that was asked for cannot run.
    """
    from trainer.distribute.launchers.hosts import parse_hosts

    parsed = parse_hosts(hosts) if hosts else []

    from trainer.system import tf_runtime

    tf_runtime.configure()

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
        print_json({"is_well": is_well, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        print_answer(_table(findings))
    if not is_well:
        raise typer.Exit(1)


def _table(findings: "list[Finding]") -> Table:
    table = Table("", "part", "found", "fix", box=box.SIMPLE_HEAD, header_style="bold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        table.add_row(Text(finding.verdict, style=style), finding.check, Text(finding.found), Text(finding.fix))
    return table
