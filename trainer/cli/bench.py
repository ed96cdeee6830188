"""`trainer bench`: measure the speed of a part of the system, and name the bottleneck."""

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from trainer.cli.options import SetOption
from trainer.console.output import JsonOption, note, print_answer, print_json

if TYPE_CHECKING:
    from trainer.data.input.input_benchmark import InputReport

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def bench() -> None:
    """Measure the speed of a part of the system on this machine, and name the bottleneck."""


@app.command("input")
def bench_input(
    dataset: Annotated[str, typer.Argument(help="A prepared dataset.")],
    config: Annotated[
        pathlib.Path | None, typer.Option(help="A recipe, as for trainer launch.", show_default="none")
    ] = None,
    set_: SetOption = None,
    readers: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Concurrent reads; repeatable.", show_default="1, 2 and 4"),
    ] = None,
    secs: Annotated[
        float, typer.Option(min=0.05, max=600, help="Seconds for each measurement; every stage has three.")
    ] = 1.0,
    json_: JsonOption = False,
) -> None:
    """Measure the training input in images/s, stage by stage, and compare it with what the cores can decode.

    Reads and decodes DATASET as [bold]trainer launch[/] with the same settings would, without a model and without a
    GPU. Names the bottleneck: read, decode, batch or gather.
    """
    from trainer.config.config import load_config

    settings = load_config(config, set_ or [], flags={"data": {"path": dataset}, "distribute": {"device": "cpu"}})

    from trainer.data.dataset.manifest import Manifest
    from trainer.data.dataset.storage import parse_path

    dataset_dir = parse_path(dataset)
    Manifest.load(dataset_dir)  # refuse a wrong path before TensorFlow starts

    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)

    import os

    from trainer.console.progress import task_progress
    from trainer.data.input.input_benchmark import measure_input
    from trainer.distribute.topology import Topology
    from trainer.plan.plan import make_plan
    from trainer.training.input import make_training_stream, open_caches

    if settings.data.cache == "auto":
        note("measured without the cache of decoded images; --set data.cache=memory measures with it")
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"cache": "off"})})
    topology = Topology(strategy="single", device="cpu", num_local_replicas=1)
    plan = make_plan(settings, dataset_dir, topology, [])
    stream = make_training_stream(plan, settings, topology, open_caches(plan, settings, progress=task_progress))
    num_cores = settings.data.num_parallel_reads or len(os.sched_getaffinity(0))
    report = measure_input(stream, num_readers=readers or [1, 2, 4], secs=secs, num_cores=num_cores)
    if json_:
        import dataclasses

        print_json(dataclasses.asdict(report))
    else:
        print_answer(_table(report))
        print_answer(Text.assemble("limited by ", (report.limiting_stage, "bold"), f": {report.explanation}"))


def _table(report: "InputReport") -> Table:
    table = Table(title=f"images/s on {report.num_cores} core{'s' if report.num_cores != 1 else ''}")
    for name in ("readers", "read only", "read and decode", "whole pipeline", "of the ceiling"):
        table.add_column(name, justify="right")
    for rates in report.rates:
        table.add_row(
            str(rates.num_readers),
            f"{rates.read:,.0f}",
            f"{rates.decode:,.0f}",
            f"{rates.pipeline:,.0f}",
            f"{rates.pipeline / report.ceiling:.0%}",
        )
    table.caption = f"ceiling, decoding from memory alone: {report.ceiling:,.0f}"
    return table
