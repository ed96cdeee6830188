"""`trainer evaluate`: the exact metrics of a split."""

import pathlib
import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trainer.cli.options import (
    DeviceName,
    MovedDataOption,
    RunArgument,
    SplitName,
    TrustOption,
    WeightsOption,
    WhichOption,
)
from trainer.console.output import JsonOption, note, print_answer, print_json

if TYPE_CHECKING:
    from trainer.metrics.evaluation import Evaluation, Interval


def evaluate(
    run: RunArgument,
    split: Annotated[SplitName, typer.Option(help="The split of the dataset.")] = "test",
    which: WhichOption = "best",
    weights: WeightsOption = "auto",
    data: MovedDataOption = None,
    slice_: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            help="Also evaluate by a column of the records: folder, format, height, width, weight; repeatable.",
        ),
    ] = None,
    slices: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Also evaluate by the columns of a CSV file; its column filename or example says which image."
        ),
    ] = None,
    device: Annotated[DeviceName, typer.Option(help="Where to compute.")] = "auto",
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs.", show_default="all")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="How many replicas share the CPU, with --device cpu.", show_default="1")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per replica in a batch.")] = 32,
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Evaluate a run on every example of a split exactly once, on any number of replicas.

    Writes RUN/evaluation/SPLIT.json and the logits beside it, for trainer report and trainer compare. Temperature and
    thresholds are tuned on the validation split, which is evaluated first if that was not done.
    """
    from trainer.config.config import load_config

    settings = load_config(
        flags={
            "distribute": {
                "device": device,
                **({"gpus": gpus} if gpus else {}),
                **({"replicas": replicas} if replicas else {}),
            }
        }
    ).distribute

    from trainer.run.run_dir import RunDir

    RunDir(run).info()  # refuse a wrong path before TensorFlow starts

    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=device != "cpu")

    from trainer.data.dataset.storage import parse_path
    from trainer.distribute.mirrored import make_engine
    from trainer.distribute.topology import resolve_topology
    from trainer.evaluation.evaluate_run import evaluate_run

    topology = resolve_topology(settings, num_gpus_found=len(tf_runtime.list_gpus()))
    evaluation = evaluate_run(
        RunDir(run),
        split,
        make_engine(topology),
        which=which,
        weights=weights,
        dataset_dir=parse_path(data) if data else None,
        slice_columns=slice_ or (),
        slice_file=slices,
        per_replica_batch_size=batch_size,
        note=note,
    )
    if json_:
        print_json(evaluation.model_dump(mode="json"))
    else:
        print_answer(_describe(evaluation, run))


def _describe(evaluation: "Evaluation", run: pathlib.Path) -> Text:
    e, intervals = evaluation, evaluation.intervals
    low, high = e.accuracy_interval
    accuracy = f"{e.accuracy:.4f}"
    beginning = f"{e.split}: {'exact match' if e.task == 'multi_label' else 'accuracy'} "
    lines = [
        f" (95% interval {low:.4f} to {high:.4f}) over {e.num_examples} images, "
        + (f"top-5 {e.top5_accuracy:.4f}, " if e.task == "single_label" and e.top5_accuracy is not None else "")
        + f"loss {e.loss:.4f}, step {e.global_step}",
        f"macro F1 {e.macro.f1:.4f}{_within(intervals.macro_f1 if intervals else None)}, "
        f"{'AP' if e.task == 'binary' else 'mAP'} "
        f"{_number(e.ranking.average_precision)}{_within(intervals.average_precision if intervals else None)}, "
        f"ROC AUC {_number(e.ranking.roc_auc)}{_within(intervals.roc_auc if intervals else None)}",
    ]
    for name, at in zip(("threshold 0.5", "the tuned threshold"), e.at_thresholds, strict=False):
        chosen = name if e.task == "binary" or name == "threshold 0.5" else "the tuned thresholds"
        lines.append(
            f"with {chosen}: F1 {at.f1:.4f}, precision {at.precision:.4f}, recall {at.recall:.4f}, "
            + (f"hamming loss {at.hamming_loss:.4f}" if e.task == "multi_label" else f"accuracy {at.accuracy:.4f}")
        )
    lines.append(f"calibration error {e.calibration.ece:.4f}{_cooled(e)}")
    lines += [
        f"{s.column} {s.value}: {s.accuracy:.4f} ({s.accuracy_interval[0]:.4f} to "
        f"{s.accuracy_interval[1]:.4f}) over {s.num_examples}"
        for s in e.slices
    ]
    lines.append(f"next: trainer report {shlex.quote(str(run))}")
    return Text.assemble(beginning, (accuracy, "bold"), "\n".join(lines))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _within(interval: "Interval | None") -> str:
    return f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""


NO_TEMPERATURE = "no temperature: on the validation split the model is always right, or no better than chance"


def _cooled(evaluation: "Evaluation") -> str:
    calibration, tuning = evaluation.calibration, evaluation.tuning
    if tuning is not None and tuning.temperature is None:
        return f"; {NO_TEMPERATURE}"
    if tuning is None or calibration.ece_with_temperature is None or calibration.loss_with_temperature is None:
        return ""
    return (
        f"; with the temperature {tuning.temperature:.3f} {calibration.ece_with_temperature:.4f}, "
        f"loss {calibration.loss_with_temperature:.4f}"
    )
