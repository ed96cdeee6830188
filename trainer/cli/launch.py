"""`trainer launch`: train, or continue a run."""

import os
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from trainer.cli.options import DeviceName, SetOption, TrustOption
from trainer.console.output import JsonOption, note, print_answer, print_json
from trainer.system.stop_signals import stopping_at_once

if TYPE_CHECKING:
    from trainer.config.config import Config
    from trainer.launch.plan_run import PlannedRun

DEFAULT_CONFIG_FILE = pathlib.Path("trainer.yaml")
AUTO = "auto"


@stopping_at_once()
def launch(
    data: Annotated[
        str | None,
        typer.Option(
            help="A prepared dataset, or a folder with one folder of images per class (prepared once).",
            show_default="data.path of ./trainer.yaml",
        ),
    ] = None,
    run_dir: Annotated[
        pathlib.Path | None,
        typer.Option(help="The run directory; the same command continues the run.", show_default="runs/<time>"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Settings that come with trainer: frozen, finetune, staged, scratch and others. auto looks at the "
            "data, chooses one and says why. --config and --set change single settings.",
        ),
    ] = None,
    config: Annotated[
        pathlib.Path | None,
        typer.Option(help="Your own settings: a YAML file with those that differ.", show_default="./trainer.yaml"),
    ] = None,
    set_: SetOption = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs of this machine.", show_default="all")] = None,
    device: Annotated[DeviceName | None, typer.Option(help="Where to train.", show_default="auto")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="With --device cpu: how many replicas share the CPU.", show_default="1")
    ] = None,
    strategy: Annotated[
        Literal["auto", "single", "mirrored", "multiworker", "horovod"] | None,
        typer.Option(
            help="auto: mirrored if there are several replicas. multiworker and horovod run a process per replica, "
            "started by this command, or by mpirun, Slurm or Kubernetes.",
            show_default="auto",
        ),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(metavar="A:8,B:8", help="Machines to reach by ssh, and the number of workers on each."),
    ] = None,
    min_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="The fewest workers with which an elastic job (horovod) trains.", show_default="1"),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="The most workers that an elastic job takes.", show_default="what the hosts have"),
    ] = None,
    host_discovery_script: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="A program that prints the hosts an elastic job may use, one per line, as a:8.",
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] | None,
        typer.Option(help="auto: mixed_bfloat16 on GPUs that have it, float32 on CPUs.", show_default="auto"),
    ] = None,
    xla: Annotated[
        Literal["auto", "on", "off"] | None,
        typer.Option(help="Compile the step with XLA; auto: on for GPUs, off for CPUs.", show_default="auto"),
    ] = None,
    strict_batch: Annotated[
        bool | None,
        typer.Option(
            "--strict-batch", help="Refuse a global batch that the replicas cannot share evenly.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue this run with its own settings and dataset, on any number of workers.",
        ),
    ] = None,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Refuse a --run-dir that holds a run, which is continued otherwise.")
    ] = False,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECS", help="How long to wait if another command trains in --run-dir."),
    ] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and by which processes; train nothing.")
    ] = False,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Train a classifier on every GPU of this machine, or continue a run that was stopped.

    [bold]trainer launch --gpus 8[/] is enough if ./trainer.yaml names the data. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and
    SIGUSR2 save and exit with status 75; the same command then continues with the next example.

    [bold]trainer launch --data photos/ --device cpu --replicas 2 --set train.epochs=5[/]
    """
    _check_resume(resume, others={"--run-dir": run_dir, "--recipe": recipe, "--config": config}, no_resume=no_resume)
    file = config or (DEFAULT_CONFIG_FILE if DEFAULT_CONFIG_FILE.is_file() else None)
    flags: dict[str, dict[str, Any]] = {
        "data": {"path": data},
        "distribute": {
            "gpus": gpus,
            "device": device,
            "replicas": replicas,
            "strategy": strategy,
            "hosts": hosts,
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "host_discovery_script": host_discovery_script,
            "precision": precision,
            "xla": xla,
            "strict_batch": strict_batch,
        },
    }
    settings, arguments = _load_settings(resume, file, set_ or [], recipe=recipe, flags=_given(flags))

    from trainer.distribute.launchers.external import check_alone

    # Refuse this before TensorFlow starts, and before each of several processes prepares a folder of images.
    check_alone(settings.distribute.strategy)

    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=settings.distribute.device != "cpu", xla_cache_dir=settings.distribute.xla_cache_dir)
    if dry_run and _print_preparation(settings, as_json=json_):
        return
    if recipe == AUTO:
        recipe = _choose_recipe(settings)
        settings, _ = _load_settings(None, file, set_ or [], recipe=recipe, flags=_given(flags))

    from trainer.distribute.launchers import heartbeat
    from trainer.launch.plan_run import plan_run

    planned = plan_run(
        settings,
        run_dir=resume or run_dir,
        resume=not no_resume,
        note=note,
        recipe=recipe,
        wait_secs=wait,
        arguments=arguments and [*arguments, *(["--trust"] if trust else [])],
        only_planned=dry_run,
    )
    # A worker that this command has started prints nothing: the command speaks for all.
    speaks = planned.topology.is_chief and heartbeat.VARIABLE not in os.environ
    if dry_run:
        if speaks:
            _print_dry_run(planned, is_run_dir_given=(resume or run_dir) is not None, as_json=json_)
        return
    _train(planned, speaks=speaks, as_json=json_)


def _train(planned: "PlannedRun", *, speaks: bool, as_json: bool) -> None:
    """Train the planned run, and print the plan before and the next command after it, if this process `speaks`."""
    from trainer.launch.run_session import RunSession
    from trainer.launch.start_run import train_session

    with RunSession.open(planned, note) as session:
        planned = session.planned
        summary = {
            "run_dir": str(planned.run.path),
            "first_step": planned.first_step,
            **planned.plan.model_dump(mode="json"),
        }
        if speaks and not as_json:
            note(_describe_in_a_line(summary))
        train_session(session, planned.arguments or sys.argv[1:])
    if speaks:
        next_command = evaluate_command(planned.run.path, planned.plan.data.dataset_dir)
        print_json(summary) if as_json else print_answer(f"trained: {planned.run.path}\nnext:    {next_command}")


def _check_resume(resume: pathlib.Path | None, *, others: dict[str, Any], no_resume: bool) -> None:
    """Refuse options that contradict --resume RUN, which names the directory and has the settings."""
    from trainer.errors import UsageError

    given = [option for option, value in others.items() if value is not None] + ["--no-resume"] * no_resume
    if resume is not None and given:
        raise UsageError(
            f"--resume {resume} goes on in that directory with the settings that are there, so {given[0]} is given "
            "for nothing; leave it out, and change single settings with --set"
        )


def _load_settings(
    resume: pathlib.Path | None,
    file: pathlib.Path | None,
    overrides: list[str],
    *,
    recipe: str | None,
    flags: dict[str, dict[str, Any]],
) -> "tuple[Config, list[str] | None]":
    """Return the settings, and the arguments that give them to workers if those of this command do not."""
    from trainer.config.config import load_config

    if resume is None:
        return load_config(file, overrides, recipe=None if recipe == AUTO else recipe, flags=flags), None
    from trainer.launch.settings_of_run import settings_of_run, to_arguments
    from trainer.run.run_dir import RunDir

    settings = settings_of_run(RunDir(resume), overrides, flags=flags)
    return settings, ["launch", *to_arguments(settings)]


def evaluate_command(run_dir: pathlib.Path, dataset_dir: str) -> str:
    """Return the command that evaluates a run on the held-out split: test, or validation if there is no test split."""
    from trainer.data.dataset.manifest import Manifest
    from trainer.data.dataset.storage import parse_path

    split = Manifest.load(parse_path(dataset_dir)).held_out_split
    return f"trainer evaluate {shlex.quote(str(run_dir))} --split {split}"


def _choose_recipe(settings: "Config") -> str:
    from trainer.launch.plan_run import find_dataset
    from trainer.plan.recipe_choice import choose_recipe

    choice = choose_recipe(settings, find_dataset(settings, note))
    note(f"recipe {choice.recipe}: {choice.reason}")
    return choice.recipe


def _print_preparation(settings: "Config", *, as_json: bool) -> bool:
    """Print what would be prepared before training; return False if the dataset is prepared already."""
    from trainer.distribute.launchers.external import find_external_worker
    from trainer.launch.plan_run import find_preparation

    found = find_preparation(settings)
    if found is None:
        return False
    worker = find_external_worker()
    if worker is not None and worker.worker_index:
        return True  # the first of several processes prints it for all
    if as_json:
        print_json({"schema_version": 1, "would_prepare": found._asdict()})
        return True
    dataset = shlex.quote(f"{found.source}-dataset")
    print_answer(
        Text(
            f"would prepare  {found.source}: {found.num_files:,} files of {len(found.class_names):,} classes\n"
            f"as             {found.dataset_dir}\n"
            f"and then train; nothing was written. The plan needs the prepared dataset: prepare it, and plan again\n"
            f"next           trainer prepare {shlex.quote(found.source)} --out {dataset}\n"
            f"               trainer launch --dry-run --data {dataset}"
        )
    )
    return True


def _print_dry_run(planned: "PlannedRun", *, is_run_dir_given: bool, as_json: bool) -> None:
    from trainer.dry_run.document import make_dry_run
    from trainer.dry_run.tables import render

    found = make_dry_run(planned, is_run_dir_given=is_run_dir_given)
    if as_json:
        print_json(found.to_json())
        return
    for part in render(found):
        print_answer(part)


def _given(flags: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {section: {k: v for k, v in values.items() if v is not None} for section, values in flags.items()}


def _describe_in_a_line(summary: dict[str, Any]) -> str:
    return (
        f"{summary['backbone']} ({summary['weights']} weights, {summary['image_size_px']} px, trains "
        f"{summary['trainable']}) on {summary['num_train_examples']} images of {len(summary['class_names'])} classes: "
        f"{summary['num_train_steps']} steps of {summary['global_batch_size']} on {summary['num_replicas']} "
        f"{summary['device']} replica{'s' if summary['num_replicas'] != 1 else ''} ({summary['strategy']}), "
        f"{summary['precision']}, XLA {'on' if summary['jit_compile'] else 'off'}\n"
        f"features: {summary['features']['reason']}\n"
        f"cache: {summary['cache_reason']}" + (f"\nhead: {summary['head_reason']}" if summary["head_reason"] else "")
    )
