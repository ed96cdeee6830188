import json
import math
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import RunError
from trainer.run.metric_writers import MetricsLog, MetricWriters, TensorBoardWriter, read_metrics


def write_log(path: pathlib.Path, steps) -> None:
    log = MetricsLog(path, wall_clock=lambda: 1.5)
    for step in steps:
        log.write(step, "train", {"loss": 1 / step})
    log.close()


def steps_in(path: pathlib.Path) -> list[int]:
    return [entry["step"] for entry in read_metrics(path)]


def test_a_line_is_one_strict_json_object_and_is_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl", wall_clock=lambda: 1763700000.25)
    log.write(120, "validation", {"loss": 0.5, "accuracy": np.float32(0.25), "skipped_steps": np.int64(3)})
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 120, "split": "validation", "time": 1763700000.25, "loss": 0.5, "accuracy": 0.25, "skipped_steps": 3,
    }  # fmt: skip
    log.close()


def test_values_that_are_not_finite_stay_strict_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1, "train", {"loss": math.nan, "gradient_norm": math.inf, "lowest": -math.inf})
    log.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    (entry,) = read_metrics(path)
    assert math.isnan(entry["loss"])
    assert (entry["gradient_norm"], entry["lowest"]) == (math.inf, -math.inf)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.data())
def test_a_log_killed_at_any_byte_is_readable_can_be_cut_back_and_goes_on(steps, data):
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "metrics.jsonl"
        write_log(path, steps)
        content = path.read_bytes()
        killed_at = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:killed_at])

        survivors = steps_in(path)
        assert survivors == steps[: content[:killed_at].count(b"\n")]

        restored = data.draw(st.integers(0, 10**6))
        log = MetricsLog(path)
        log.truncate_after(restored)
        log.write(restored + 1, "train", {"loss": 0.0})
        log.close()
        assert steps_in(path) == [*(s for s in survivors if s <= restored), restored + 1]
        assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_opening_a_log_cuts_off_its_torn_line_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_log(path, [1, 2])
    with path.open("ab") as f:
        f.write(b'{"step": 3, "spl')
    write_log(path, [4])
    assert steps_in(path) == [1, 2, 4]


def test_a_broken_line_before_the_last_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_log(path, [1, 2, 3])
    lines = path.read_text().splitlines(keepends=True)
    for broken in ("\0\0\0\n", "[]\n", '{"step": 1}\n', '{"step": "1", "split": "train"}\n'):
        path.write_text("".join([lines[0], broken, lines[2]]))
        with pytest.raises(RunError, match="line 2 of "):
            read_metrics(path)


def test_a_missing_log_is_an_error(tmp_path):
    with pytest.raises(RunError, match="has logged nothing yet"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_the_writers_all_get_every_value_and_tensorboard_reads_them(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    with MetricWriters([MetricsLog(tmp_path / "m.jsonl"), TensorBoardWriter(tmp_path / "tensorboard")]) as writers:
        writers.write(5, "train", {"loss": 0.5})
        writers.write(10, "train", {"loss": 0.25})
        writers.write(10, "validation", {"loss": 0.75, "accuracy": 1.0})
    assert [(e["step"], e["split"], e["loss"]) for e in read_metrics(tmp_path / "m.jsonl")] == [
        (5, "train", 0.5),
        (10, "train", 0.25),
        (10, "validation", 0.75),
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "train")).Reload()
    (key,) = events.Tags()["tensors"]
    assert key == "loss"
    assert [(e.step, make_ndarray(e.tensor_proto)) for e in events.Tensors("loss")] == [(5, 0.5), (10, 0.25)]
    assert sorted(p.name for p in (tmp_path / "tensorboard").iterdir()) == ["train", "validation"]
