"""The last lines of the metrics log, kept in memory by every worker of an elastic job.

Only the chief writes the log. When it is lost between a step and its lines, the next chief, which has made that step as
well, writes what is missing.
"""

from collections.abc import Mapping

from trainer.run.metric_writers import MetricsLog, MetricsSplit, read_metrics
from trainer.run.run_dir import RunDir


class LastLines:
    """A `MetricWriter` that keeps the lines of the newest step that has any."""

    def __init__(self) -> None:
        self._step = 0
        self._lines: dict[MetricsSplit, dict[str, float]] = {}

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None:
        if step != self._step:
            self._step, self._lines = step, {}
        self._lines[split] = dict(values)

    def close(self) -> None:
        """Nothing is open."""

    def complete(self, run: RunDir, step: int, *, is_step_open: bool) -> None:
        """Makes the log end with `step`, its lines included.

        With `is_step_open`, what follows the training step, evaluation and checkpoint, is yet to be done for it.
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
