"""`trainer publish` and `trainer rollback`: the versions of an exported model, one of them current."""

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trainer.cli.options import ExportArgument
from trainer.console.output import JsonOption, note, print_answer, print_json

if TYPE_CHECKING:
    from export.versions.publish import VersionChange

RootArgument = Annotated[
    pathlib.Path,
    typer.Argument(
        help="The directory of all versions, ROOT/1, ROOT/2..., and of the link ROOT/current to one of them."
    ),
]


def publish(
    export: ExportArgument,
    root: RootArgument,
    allow_failed: Annotated[
        bool,
        typer.Option(
            "--allow-failed",
            help="Also publish an export with artifacts over budget (trainer export --allow-failed).",
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Publish an export as a new version in ROOT, and make it the current one.

    Its checksums are compared, and it must have passed the gate. Readers of [bold]ROOT/current[/] see the complete old
    version or the complete new one, also after a kill. The version is the [bold]--version[/] of the export, or the next
    free number if none was given.
    """
    from export.files.provenance import ExportProvenance
    from export.versions.publish import publish_version

    change = publish_version(export, root, allow_failed=allow_failed)
    exported = ExportProvenance.load(export).version
    if change.now != exported:
        note(f"{root} already has version {exported} or a later one, so this export becomes version {change.now}")
    _answer(root, change, json_)


def rollback(
    root: RootArgument,
    to: Annotated[
        int | None, typer.Option(help="The version to make current.", show_default="the one below the current")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make an earlier version in ROOT current again, after comparing its checksums.

    No version is removed: [bold]--to[/] also goes forward.
    """
    from export.versions.publish import roll_back

    _answer(root, roll_back(root, to), json_)


def _answer(root: pathlib.Path, change: "VersionChange", json_: bool) -> None:
    from export.versions.publish import CURRENT, find_versions

    if json_:
        print_json(
            {"schema_version": 1, "current": change.now, "before": change.before, "versions": find_versions(root)}
        )
        return
    before = "" if change.before in (None, change.now) else f", version {change.before} before"
    print_answer(Text.assemble((str(root / CURRENT), "bold"), f" is version {change.now}{before}"))
