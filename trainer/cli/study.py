"""`trainer study`: train, evaluate and compare several recipes on one dataset."""

import pathlib
import shlex
import signal
import subprocess
import sys
from typing import Annotated, Any

import typer

from trainer.console.output import JsonOption, note

# Options of launch that study has to know of, too.
_DRY_RUN, _TRUST = "--dry-run", "--trust"
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def study(
    context: typer.Context,
    recipe: Annotated[
        list[str], typer.Option("--recipe", metavar="NAME", help="A recipe of trainer launch; give two or more.")
    ],
    data: Annotated[str, typer.Option(help="A prepared dataset, or a folder with one folder of images per class.")],
    out: Annotated[
        pathlib.Path, typer.Option(help="The folder for the runs, each named after its recipe, and comparison.html.")
    ],
    json_: JsonOption = False,
) -> None:
    """Train several recipes on one dataset, evaluate each, and compare them with the first.

    Every other option is passed to each trainer launch, such as --device cpu or --set train.epochs=5. After a stop or a
    kill, the same command continues.

    [bold]trainer study --data photos/ --recipe frozen --recipe finetune --out study/[/]
    """
    from trainer.config.config import find_recipe
    from trainer.errors import ConfigError

    if len(recipe) < 2 or len(set(recipe)) < len(recipe):
        raise ConfigError(f"--recipe is given as {', '.join(recipe)}; give two or more recipes, each once")
    for name in recipe:
        if name != "auto":
            find_recipe(name)
    runs = [str(out / name) for name in recipe]
    for name, run in zip(recipe, runs, strict=True):
        _step(["launch", f"--recipe={name}", f"--data={data}", f"--run-dir={run}", *context.args])
    if _DRY_RUN in context.args:
        return
    split = _held_out_split(runs[0])
    for run in runs:
        _step(["evaluate", run, f"--split={split}", *([_TRUST] if _TRUST in context.args else [])])
    page = [f"--out={out / 'comparison.html'}"]
    _step(["compare", *runs, f"--split={split}", *page, *(["--json"] if json_ else [])], answers=True)


def _held_out_split(run: str) -> str:
    """Return the split to compare on: test, or validation if the dataset has no test split."""
    from trainer.data.dataset.manifest import Manifest
    from trainer.data.dataset.storage import parse_path
    from trainer.run.run_dir import RunDir

    return Manifest.load(parse_path(RunDir(run).info().dataset_dir)).held_out_split


def _step(arguments: list[str], *, answers: bool = False) -> None:
    """Run one command of trainer; if it fails, exit with its status."""
    note(f"$ trainer {shlex.join(arguments)}")
    status = run_command(arguments, answers=answers)
    if status:
        note(f"ended with status {status}; the same command goes on from here")
        raise typer.Exit(status)


def run_command(arguments: list[str], *, answers: bool) -> int:
    """Run `trainer` with `arguments` in a process of its own, which frees devices and memory at its end.

    Its standard output becomes standard error, unless it `answers` for this command.
    """
    from trainer.system.child_python import python_command

    command = python_command("trainer", *arguments)
    child = subprocess.Popen(command, stdout=None if answers else sys.stderr.fileno())  # noqa: S603  this very program

    def pass_on(signum: int, _: Any) -> None:
        child.send_signal(signum)

    # The child gets Ctrl-C from the terminal, saves and ends; this process waits for it.
    before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, pass_on)
    try:
        status = child.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return 128 - status if status < 0 else status
