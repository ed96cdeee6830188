"""`trainer evaluate`: the exact metrics of a split."""

import pathlib
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.output import JsonOption, print_answer, print_json

if TYPE_CHECKING:
    from trainer.classification_metrics import Evaluation


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


class Which(StrEnum):
    best = "best"
    last = "last"


class Weights(StrEnum):
    auto = "auto"
    raw = "raw"
    averages = "averages"


def evaluate(
    run: Annotated[pathlib.Path, typer.Argument(help="The run directory of trainer launch.")],
    split: Annotated[Split, typer.Option(help="Which split of the dataset.")] = Split.test,
    which: Annotated[Which, typer.Option(help="The checkpoint: best on validation, or last.")] = Which.best,
    weights: Annotated[
        Weights, typer.Option(help="raw, or the moving averages; auto: the averages where the run has them.")
    ] = Weights.auto,
    data: Annotated[str | None, typer.Option(help="The dataset, if it has moved.", show_default="as trained")] = None,
    device: Annotated[str, typer.Option(help="auto, gpu or cpu.")] = "auto",
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs.", show_default="all")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="With --device cpu: how many.", show_default="1")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images for each replica at a time.")] = 32,
    json_: JsonOption = False,
) -> None:
    """Evaluate a run on every example of a split exactly once, on any number of replicas.

    Writes RUN/evaluation/SPLIT.json (metrics, confusion matrix) and the logits beside it, for trainer report.
    """
    from trainer.config import load_config

    settings = load_config(
        flags={
            "distribute": {
                "device": device,
                **({"gpus": gpus} if gpus else {}),
                **({"replicas": replicas} if replicas else {}),
            }
        }
    ).distribute

    from trainer.run_dir import RunDir

    RunDir(run).info()  # a wrong path is answered before TensorFlow is started

    from trainer import tf_runtime

    tf_runtime.configure(use_gpus=device != "cpu")

    from trainer.data.storage import parse_path
    from trainer.distribute.tf_strategy import make_engine
    from trainer.distribute.topology import resolve_topology
    from trainer.evaluate import evaluate_run

    topology = resolve_topology(settings, num_gpus_found=len(tf_runtime.list_gpus()))
    evaluation = evaluate_run(
        RunDir(run),
        split.value,
        make_engine(topology),
        which=which.value,
        weights=weights.value,
        dataset_dir=parse_path(data) if data else None,
        per_replica_batch_size=batch_size,
    )
    if json_:
        print_json(evaluation.model_dump(mode="json"))
    else:
        print_answer(_describe(evaluation, run))


def _describe(evaluation: "Evaluation", run: pathlib.Path) -> str:
    low, high = evaluation.accuracy_interval
    return (
        f"{evaluation.split}: accuracy [bold]{evaluation.accuracy:.4f}[/] (95% interval {low:.4f} to {high:.4f}) over "
        f"{evaluation.num_examples} images, top-5 {evaluation.top5_accuracy:.4f}, loss {evaluation.loss:.4f}, "
        f"step {evaluation.global_step}\n"
        f"next: trainer report {run}"
    )
