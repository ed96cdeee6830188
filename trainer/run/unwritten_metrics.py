"""Metrics of the newest step, kept in memory by every worker of an elastic job.

Only the chief writes the log. If it is lost after a step but before its lines are written, the next chief, which has
made that step too, writes the missing lines.
"""

from collections.abc import Mapping

from trainer.run.metric_writers import MetricsLog, MetricsSplit, MetricWriters, TensorBoardWriter, read_metrics
from trainer.run.run_dir import RunDir


class UnwrittenMetrics:
    """A `MetricWriter` that keeps the metrics of the newest step in memory."""

    def __init__(self) -> None:
        self._step = 0
        self._lines: dict[MetricsSplit, dict[str, float]] = {}

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None:
        if step != self._step:
            self._step, self._lines = step, {}
        self._lines[split] = dict(values)

    def close(self) -> None:
        """Do nothing; no file is open."""

    def complete(self, run: RunDir, step: int, *, is_step_open: bool) -> None:
        """Make the log and TensorBoard end with all metrics of `step`.

        If `is_step_open`, the evaluation and the checkpoint of `step` are still to be done, and add their own lines.
        """
        kept = {} if self._step != step else self._lines
        lines = {split: values for split, values in kept.items() if split == "train" or not is_step_open}
        last_step = step - 1 if is_step_open else step
        log, tensorboard = MetricsLog(run.metrics_file), TensorBoardWriter(run.tensorboard_dir)
        with MetricWriters([log, tensorboard]):
            log.truncate_after(last_step)
            written = {(line["step"], line["split"]) for line in read_metrics(run.metrics_file)}
            # The lost chief may have written some of the values of a line: all of them are written again.
            tensorboard.truncate_after(step - 1 if lines else last_step)
            for split, values in lines.items():
                tensorboard.write(step, split, values)
                if (step, split) not in written:
                    log.write(step, split, values)
