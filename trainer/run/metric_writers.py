"""Write the metrics of a training run to `RUN/metrics.jsonl`, whose format this module owns, and to TensorBoard.

A line of `metrics.jsonl` is one JSON object,

    {"step": 120, "split": "train", "time": 1763700000.25, "loss": 0.31, "accuracy": 0.92, ...}

with `split` one of `MetricsSplit` and `time` in seconds since the epoch. JSON has no NaN or infinity; they are written
as the strings "NaN", "Infinity" and "-Infinity", as in the JSON mapping of Protocol Buffers, and `read_metrics` turns
them back into floats.
"""

import json
import math
import numbers
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Literal, Protocol, get_args

from trainer.errors import RunError
from trainer.system import atomic

# validation_raw: with the raw weights, if "validation" is with their moving averages.
MetricsSplit = Literal["train", "validation", "validation_raw"]

_OWN_KEYS = ("step", "split", "time")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricWriter(Protocol):
    """A destination for the metrics of a step."""

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """A writer of `metrics.jsonl` that flushes each line; a kill can leave only the last line incomplete.

    Opening the log removes such an incomplete last line. Only one writer may be open at a time.
    """

    def __init__(self, path: pathlib.Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        """Open the log for appending; `wall_clock` returns seconds since the epoch."""
        self._path = path
        self._wall_clock = wall_clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("ab")
        os.truncate(path, sum(len(line) for line in _whole_lines(path.read_bytes())))

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None:
        """Append one line; `values` may be NaN or infinite."""
        assert not set(values) & set(_OWN_KEYS), f"{_OWN_KEYS} are set by the log"
        entry: dict[str, Any] = {"step": int(step), "split": split, "time": self._wall_clock()}
        entry |= {name: _to_json(value) for name, value in values.items()}
        self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Remove the lines of later steps, for a run that resumes from the checkpoint of `step`."""
        lines = _whole_lines(self._path.read_bytes())
        kept = [line for number, line in enumerate(lines, 1) if _parse(line, self._path, number)["step"] <= step]
        self._file.close()
        atomic.write_bytes(self._path, b"".join(kept))
        self._file = self._path.open("ab")

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """A writer of TensorBoard scalars, one folder per split, so that charts overlay training and validation."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._writers: dict[str, Any] = {}

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None:
        import tensorflow as tf

        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(str(self._directory / split))
        with self._writers[split].as_default():
            for name, value in values.items():
                tf.summary.scalar(name, value, step=step)
        self._writers[split].flush()

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()


class MetricWriters:
    """Several writers used as one; as a context manager it closes them all."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = list(writers)

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, split, values)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> "MetricWriters":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the entries of a `metrics.jsonl` in order, without an incomplete last line.

    Raises:
        RunError: the file is missing, or another line is not an entry; the message gives its number.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{path} does not exist: the run has logged nothing yet; start it with: trainer launch"
        ) from None
    return [_parse(line, path, number) for number, line in enumerate(_whole_lines(content), 1)]


def _whole_lines(content: bytes) -> list[bytes]:
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _parse(line: bytes, path: pathlib.Path, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if not (isinstance(entry["step"], int) and entry["split"] in get_args(MetricsSplit)):
            raise ValueError(f"step is not an integer, or split is not one of {', '.join(get_args(MetricsSplit))}")
    except (ValueError, KeyError, TypeError) as e:
        raise RunError(f"line {number} of {path} is not an entry of the metrics log ({e}); remove the line") from None
    return {name: _from_json(name, value) for name, value in entry.items()}


def _to_json(value: float) -> int | float | str:
    if isinstance(value, numbers.Integral):
        return int(value)
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _from_json(name: str, value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) and name not in _OWN_KEYS else value
