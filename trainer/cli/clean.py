"""`trainer clean`: list and remove caches, features, unfinished work and old checkpoints."""

import pathlib
import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.console.output import JsonOption, note, print_answer, print_json, visible

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.cleaning.limits import Decision, Limits

SCHEMA_VERSION = 1


def clean(
    paths: Annotated[
        list[pathlib.Path] | None,
        typer.Argument(
            help="Runs, datasets, exports, caches, or folders that hold them. What belongs to one and lies beside it "
            "counts as well.",
            show_default="the working directory",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="What was not used for so long goes: a number and s, m, h, d or w.",
            show_default="7d, without --keep",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The least recently used goes until the rest takes at most this much: 20GB, 500MiB. With "
            "--older-than, what one of the two says goes.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; otherwise it is only listed.")] = False,
    json_: JsonOption = False,
) -> None:
    """List what can be removed from the disk, and why; with --yes, remove it.

    That is: decoded images and features beside datasets, programs compiled by XLA, what killed commands have not
    finished (prepare, launch, export, publish), and checkpoints of runs but for the newest whole one and the best. All
    of it is computed again when it is needed, except the checkpoints.

    Nothing is removed that a running command uses, on this host or another: a run that is being trained, a dataset that
    is being prepared, an export that is being written, a cache that is open. Datasets, exports, published versions,
    metrics and reports stay.

    [bold]trainer clean runs/ photos-dataset/ --older-than 30d[/] lists, and the same with [bold]--yes[/] removes.
    """
    from trainer.cleaning.clean import clean as clean_paths
    from trainer.cleaning.limits import parse_limits
    from trainer.errors import StorageError

    limits = parse_limits(older_than, keep)
    decisions = clean_paths(paths or [], limits, removes=yes, note=note)
    if json_:
        print_json(_to_json(decisions, limits))
    else:
        if decisions:
            print_answer(_table(decisions))
        print_answer(_sum_up(decisions, paths or [], older_than, keep))
    failed = [decision for decision in decisions if decision.action == "failed"]
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise StorageError(
            f"{failed[0].entry.path}{more} {failed[0].reason}; make sure that you may write there, and start the same "
            "command again"
        )


def _to_json(decisions: "list[Decision]", limits: "Limits") -> dict[str, Any]:
    now_secs = time.time()
    return {
        "schema_version": SCHEMA_VERSION,
        "older_than_secs": limits.older_than_secs,
        "keep_bytes": limits.keep_bytes,
        "num_bytes": {action: _total(decisions, action) for action in ("remove", "removed", "keep", "failed")},
        "entries": [
            {
                "path": str(decision.entry.path),
                "kind": decision.entry.kind,
                "what": decision.entry.what,
                "num_bytes": decision.entry.num_bytes,
                "age_secs": max(0.0, now_secs - decision.entry.used_at_secs),
                "action": decision.action,
                "reason": decision.reason,
            }
            for decision in decisions
        ],
    }


def _table(decisions: "list[Decision]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from trainer.cleaning.limits import format_age
    from trainer.system.disk import format_size

    table = Table(box=None, pad_edge=False)
    for heading in ("", "kind", "size", "last used", "what, and why"):
        table.add_column(heading, justify="right" if heading in ("size", "last used") else "left", overflow="fold")
    styles = {"remove": "yellow", "removed": "green", "failed": "bold red", "keep": ""}
    for decision in sorted(decisions, key=lambda d: (d.action == "keep", -d.entry.num_bytes)):
        entry = decision.entry
        table.add_row(
            Text(decision.action, styles[decision.action]),
            entry.kind,
            format_size(entry.num_bytes),
            format_age(time.time() - entry.used_at_secs),
            Text.assemble(visible(_shorten(entry.path)), (visible(f"\n{entry.what}: {decision.reason}"), "dim")),
        )
    return table


def _sum_up(decisions: "list[Decision]", paths: list[pathlib.Path], older_than: str | None, keep: str | None) -> str:
    from trainer.system.disk import format_size

    going = [decision for decision in decisions if decision.action == "remove"]
    removed = [decision for decision in decisions if decision.action == "removed"]
    if removed:
        return f"removed {format_size(_total(removed, 'removed'))} in {len(removed):,} entries"
    if not going:
        return "nothing to remove"
    options = [*(["--older-than", older_than] if older_than else []), *(["--keep", keep] if keep else [])]
    command = shlex.join(["trainer", "clean", *map(str, paths), *options, "--yes"])
    return f"{format_size(_total(going, 'remove'))} in {len(going):,} entries can be removed\nnext:    {command}"


def _total(decisions: "list[Decision]", action: str) -> int:
    return sum(decision.entry.num_bytes for decision in decisions if decision.action == action)


def _shorten(path: pathlib.Path) -> str:
    """Return `path` relative to the working directory if it lies below it."""
    here = pathlib.Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
