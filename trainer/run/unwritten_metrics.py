"""Metrics of the newest step, kept in memory by every worker of an elastic job.

Only the chief writes the log. If it is lost after a step but before its lines are written, the next chief, which has
made that step too, writes the missing lines.
"""

from collections.abc import Mapping

from trainer.run.metric_writers import MetricsLog, MetricsSplit, read_metrics
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
        """Make the log end with all lines of `step`.

        If `is_step_open`, the evaluation and the checkpoint of `step` are still to be done, and add their own lines.
        """
        log = MetricsLog(run.metrics_file)
        try:
            log.truncate_after(step - 1 if is_step_open else step)
            written = {(line["step"], line["split"]) for line in read_metrics(run.metrics_file)}
            for split, values in self._lines.items() if self._step == step else ():
                if (step, split) not in written and (split == "train" or not is_step_open):
                    log.write(step, split, values)
        finally:
            log.close()
