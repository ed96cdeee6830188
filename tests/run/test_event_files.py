"""TensorBoard sees each step once, whatever became of the process that wrote it."""

import pathlib

import pytest

from tests.event_files import scalars
from trainer.run.metric_writers import MetricsLog, TensorBoardWriter
from trainer.run.run_dir import RunDir
from trainer.run.unwritten_metrics import UnwrittenMetrics


def write(directory: pathlib.Path, *steps: int) -> None:
    writer = TensorBoardWriter(directory)
    for step in steps:
        writer.write(step, "train", {"loss": 1.0 / step, "accuracy": 0.5})
        if step % 2 == 0:
            writer.write(step, "validation", {"loss": 2.0 / step})
    writer.close()


@pytest.mark.parametrize("torn_bytes", [0, 1, 20])
def test_each_step_is_there_once_after_every_way_to_go_on(tmp_path: pathlib.Path, torn_bytes: int) -> None:
    """Killed, gone on, killed in a write, gone on from an earlier checkpoint, and gone on once more."""
    write(tmp_path, 1, 2, 3, 4)
    for first_step, steps in ((3, (4, 5, 6)), (2, (3, 4, 5)), (5, (6, 7))):
        newest = max((tmp_path / "train").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        if torn_bytes:
            newest.write_bytes(newest.read_bytes() + bytes(torn_bytes))
        TensorBoardWriter(tmp_path).truncate_after(first_step)
        write(tmp_path, *steps)
    # Files of one second have no order among them.
    seen = {tag: sorted(steps) for tag, steps in scalars(tmp_path / "train").items()}
    assert seen == {"loss": [1, 2, 3, 4, 5, 6, 7], "accuracy": [1, 2, 3, 4, 5, 6, 7]}
    assert sorted(scalars(tmp_path / "validation")["loss"]) == [2, 4, 6]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_run_without_a_checkpoint_begins_its_charts_anew(tmp_path: pathlib.Path) -> None:
    write(tmp_path, 1, 2, 3)
    TensorBoardWriter(tmp_path).truncate_after(0)
    write(tmp_path, 1)
    assert scalars(tmp_path / "train")["loss"] == [1]


def test_the_next_chief_of_an_elastic_job_completes_the_charts_as_the_log(tmp_path: pathlib.Path) -> None:
    run = RunDir(tmp_path)
    write(run.tensorboard_dir, 1, 2)
    log = MetricsLog(run.metrics_file)
    log.write(1, "train", {"loss": 1.0})
    log.close()
    kept = UnwrittenMetrics()
    kept.write(2, "train", {"loss": 0.5, "accuracy": 0.5})
    kept.write(2, "validation", {"loss": 1.0})
    kept.complete(run, 2, is_step_open=False)
    assert scalars(run.tensorboard_dir / "train") == {"loss": [1, 2], "accuracy": [1, 2]}
    assert scalars(run.tensorboard_dir / "validation") == {"loss": [2]}
