"""The `trainer` console script: it collects the commands, and prints an error as one sentence with an exit status.

Each command imports what it needs when it runs.
"""

import inspect
import sys
from typing import Annotated, NoReturn

import typer
from rich.text import Text

import trainer
from trainer.cli import bench
from trainer.cli.backbones import backbones
from trainer.cli.bench_export import bench_export
from trainer.cli.bench_serve import bench_serve
from trainer.cli.clean import clean
from trainer.cli.compare import compare
from trainer.cli.doctor import doctor
from trainer.cli.evaluate import evaluate
from trainer.cli.export import export
from trainer.cli.launch import launch
from trainer.cli.predict import predict
from trainer.cli.prepare import prepare
from trainer.cli.publish import publish, rollback
from trainer.cli.report import report
from trainer.cli.serve import manifests, serve
from trainer.cli.study import CONTEXT_SETTINGS as STUDY_SETTINGS
from trainer.cli.study import study
from trainer.cli.verify import verify
from trainer.console.output import console, print_answer, visible
from trainer.errors import StorageError, TrainerError
from trainer.system import own_process, storage_errors
from trainer.system.paths import expand_argument
from trainer.system.utf8 import ensure_utf8

app = typer.Typer(
    name="trainer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="From a folder of images to a trained, verified and served model, on one GPU or on a cluster.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage or bad input, 75 stopped on request and saved: "
    "the same command continues. Add --debug to any command to see the traceback of an error.",
)
for command in (
    prepare,
    launch,
    evaluate,
    report,
    compare,
    export,
    verify,
    predict,
    publish,
    rollback,
    serve,
    manifests,
    backbones,
    doctor,
    clean,
):
    app.command()(command)
bench.app.command("export")(bench_export)
bench.app.command("serve")(bench_serve)
app.command(context_settings=STUDY_SETTINGS)(study)
app.add_typer(bench.app, name="bench")
for registered in (*app.registered_commands, *bench.app.registered_commands):
    # Typer keeps the line ends of a docstring; the terminal should wrap each paragraph.
    paragraphs = inspect.cleandoc(inspect.getdoc(registered.callback) or "").split("\n\n")
    registered.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_answer(f"trainer {trainer.__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; an error of ours becomes one sentence and an exit status."""
    ensure_utf8()
    own_process.is_command = True
    arguments = [expand_argument(argument) for argument in sys.argv[1:]]
    debug = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"], prog_name="trainer")
    except TrainerError as e:
        if debug:
            raise
        _end_with(str(e), e.exit_status)
    except OSError as e:
        if debug:
            raise
        told = f"{storage_errors.describe(e)}: that could not be read or written; make sure that it can, and start the"
        _end_with(f"{told} same command again (--debug shows where it happened)", StorageError.exit_status)


def _end_with(message: str, exit_status: int) -> NoReturn:
    console.print(Text.assemble(("error:", "bold red"), f" {visible(message)}"), soft_wrap=True)
    sys.exit(exit_status)
