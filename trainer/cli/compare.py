"""`trainer compare`: several runs side by side."""

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli.options import EvaluatedSplitOption
from trainer.console.output import JsonOption, note, print_answer, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.evaluation.compare_runs import ComparedRun, Comparison


def compare(
    runs: Annotated[list[pathlib.Path], typer.Argument(help="Run directories; each is compared with the first.")],
    split: EvaluatedSplitOption = "test",
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Also write one HTML file with curves, cost and settings.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Compare runs with the first one: accuracy, difference and its significance, training time.

    The runs must have been evaluated on the same examples. The p-value is McNemar's exact test of the accuracies,
    corrected for the number of comparisons (Holm); intervals of differences come from paired bootstrap resamples.
    """
    from trainer.evaluation.compare_runs import compare_runs
    from trainer.run.run_dir import RunDir

    opened = [RunDir(run) for run in runs]
    comparison = compare_runs(opened, split)
    if out is not None:
        from trainer.report.comparison_page import write_comparison

        write_comparison(comparison, opened, out)
    if json_:
        print_json(comparison.model_dump(mode="json"))
        return
    print_answer(_table(comparison))
    if out is not None:
        note(str(out))


def _table(comparison: "Comparison") -> "Table":
    from rich.table import Table

    name = "exact match" if comparison.task == "multi_label" else "accuracy"
    title = f"{comparison.split} split, {comparison.num_examples:,} images"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, caption="below: 95% intervals")
    for heading in ("run", "trained", name, "to the first", "p", "mAP", "time"):
        table.add_column(heading, justify="left" if heading in ("run", "trained") else "right", overflow="fold")
    for run in comparison.runs:
        table.add_row(*_cells(run))
    return table


def _cells(run: "ComparedRun") -> list[str]:
    from trainer.console.progress import format_duration

    low, high = run.accuracy_interval
    difference, p_value = "", ""
    if run.difference:
        accuracy = run.difference.of("accuracy")
        difference = "" if accuracy.value is None else f"{accuracy.value:+.4f}"
        if accuracy.interval:
            difference += f"\n{accuracy.interval[0]:+.3f} to {accuracy.interval[1]:+.3f}"
        p_value = f"{run.difference.corrected_p_value:.2g}"
    return [
        run.name,
        run.how,
        f"{run.accuracy:.4f}\n{low:.3f} to {high:.3f}",
        difference,
        p_value,
        "" if run.average_precision is None else f"{run.average_precision:.4f}",
        "" if run.cost.training_secs is None else format_duration(run.cost.training_secs),
    ]
