"""`trainer doctor`: what this machine can run, and what to do first; with --accept, whether the system works on it."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from trainer.cli.acceptance import DEFAULT_OUT, run_acceptance
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
    accept: Annotated[
        bool,
        typer.Option(
            "--accept", help="Run the whole system on this machine in about ten minutes, and judge it by its figures."
        ),
    ] = False,
    small: Annotated[
        bool, typer.Option("--small", help="With --accept: a small network and few images, in about a minute.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK", help="With --accept: this check and those that it needs; repeatable."),
    ] = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="With --accept: a new directory for acceptance.json and logs.", show_default=DEFAULT_OUT),
    ] = None,
    limit_secs: Annotated[
        float | None,
        typer.Option(min=1, help="With --accept: the time limit of each check.", show_default="three minutes or more"),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Check what this machine can run: the first thing to do, then a verdict and a fix for each part.

    Checks the GPUs, their driver and the CUDA libraries of TensorFlow, XLA, NCCL, Horovod and MPI, cores, memory,
    shared memory, ports and the clock; with --hosts, also those hosts. The exit status is 1 if training, or what was
    asked for, cannot run.

    [bold]--accept[/] trains with every engine on all GPUs and compares the results, reads what XLA compiled, measures
    the all-reduce, images/s and the input, and kills and resumes a run. The exit status is 1 if a check failed.
    """
    if accept:
        _refuse(
            "--accept", {"--hosts": hosts, "--ssh-option": ssh_option, "--strategy": strategy}, "checks one machine"
        )
        run_acceptance(gpus=gpus, small=small, only=only or [], out=out, limit_secs=limit_secs, as_json=json_)
        return
    _refuse("doctor without --accept", {"--small": small, "--only": only, "--out": out, "--limit-secs": limit_secs})
    _print_findings(gpus, strategy, hosts, ssh_option or [], as_json=json_)


def _print_findings(
    gpus: int | None, strategy: str | None, hosts: str | None, ssh_options: list[str], *, as_json: bool
) -> None:
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
        *check_hosts(parsed, ssh_options),
    ]
    is_well = all(finding.verdict != "problem" for finding in findings)
    if as_json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print_json({"is_well": is_well, "first_step": first_step(findings), "findings": listed})
    else:
        print_answer(Text.assemble(("do first: ", "bold"), first_step(findings)))
        print_answer(_table(findings))
    if not is_well:
        raise typer.Exit(1)


def _refuse(with_what: str, given: dict[str, object], reason: str = "has no use for it") -> None:
    from trainer.errors import UsageError

    for option, value in given.items():
        if value not in (None, False):
            raise UsageError(f"{option} is given, and {with_what} {reason}; leave {option} out")


def _table(findings: "list[Finding]") -> Table:
    table = Table("", "part", "found", "fix", box=box.SIMPLE_HEAD, header_style="bold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        table.add_row(Text(finding.verdict, style=style), finding.check, Text(finding.found), Text(finding.fix))
    return table
