"""Write the metrics of a training run to `RUN/metrics.jsonl`, whose format this module owns, and to TensorBoard.

A line of `metrics.jsonl` is one JSON object,

    {"step": 120, "split": "train", "time": 1763700000.25, "loss": 0.31, "accuracy": 0.92, ...}

with `split` one of `MetricsSplit` and `time` in seconds since the epoch. JSON has no NaN or infinity; they are written
as the strings "NaN", "Infinity" and "-Infinity", as in the JSON mapping of Protocol Buffers, and `read_metrics` turns
them back into floats.
"""

import contextlib
import errno
import json
import math
import numbers
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Literal, Protocol, get_args

from trainer.errors import RunError, StorageError
from trainer.run.event_files import remove_later_events
from trainer.system import atomic, storage_errors

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

    Opening the log removes such an incomplete last line. Only one writer may be open at a time. Lines that cannot be
    written, as on a full disk, are kept in memory and written before the next line.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        note: Callable[[str], None] = lambda _: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the log for appending.

        Args:
            path: the file.
            note: called with a sentence, with the figures, when lines cannot be written, and when they are at last.
            wall_clock: returns seconds since the epoch.
        """
        self._path, self._note = path, note
        self._wall_clock = wall_clock
        self._waiting: list[bytes] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open(sum(len(line) for line in _whole_lines(path.read_bytes())) if path.exists() else 0)

    def _open(self, num_bytes: int) -> None:
        # Without a buffer, since one that cannot be flushed cannot be closed either.
        self._file: IO[bytes] = self._path.open("ab", buffering=0)
        self._num_bytes = num_bytes
        os.truncate(self._path, num_bytes)

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None:
        """Append one line; `values` may be NaN or infinite."""
        assert not set(values) & set(_OWN_KEYS), f"{_OWN_KEYS} are set by the log"
        entry: dict[str, Any] = {"step": int(step), "split": split, "time": self._wall_clock()}
        entry |= {name: _to_json(value) for name, value in values.items()}
        was_waiting = bool(self._waiting)
        self._waiting.append(json.dumps(entry, allow_nan=False).encode() + b"\n")
        num_lines = len(self._waiting)
        try:
            self.flush()
        except OSError as e:
            if not was_waiting:
                self._note(
                    f"warning: the metrics of step {step} could not be written to {storage_errors.describe(e)}; they "
                    "are kept in memory and written with the next ones"
                )
        else:
            if was_waiting:
                self._note(f"{self._path}: {num_lines} lines that could not be written before are written now")

    def flush(self) -> None:
        """Write the lines that could not be written before.

        Raises:
            OSError: they still cannot, or the file is gone.
        """
        if self._file.closed and not self._waiting:
            return
        try:
            if os.fstat(self._file.fileno()).st_nlink == 0:
                # What is written into a file without a name is lost.
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            content = b"".join(self._waiting)
            while content:
                content = content[self._file.write(content) :]
        except OSError as e:
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._num_bytes)
            raise OSError(e.errno, e.strerror, str(self._path)) from e
        self._num_bytes += sum(len(line) for line in self._waiting)
        self._waiting.clear()

    def truncate_after(self, step: int) -> None:
        """Remove the lines of later steps, for a run that resumes from the checkpoint of `step`."""
        lines = _whole_lines(self._path.read_bytes())
        kept = [line for number, line in enumerate(lines, 1) if _parse(line, self._path, number)["step"] <= step]
        self._file.close()
        content = b"".join(kept)
        atomic.write_bytes(self._path, content)
        self._open(len(content))

    def close(self) -> None:
        """Close the file.

        Raises:
            StorageError: lines are left that cannot be written.
        """
        try:
            self.flush()
        except OSError as e:
            if self._waiting:
                raise StorageError(
                    f"{len(self._waiting)} lines of metrics could not be written to {storage_errors.describe(e)}; make "
                    "room and start the same command again"
                ) from e
        finally:
            self._file.close()


# How long to wait before values that could not be written are tried again, which reads the files of their split.
_RETRY_SECS = 10.0


class TensorBoardWriter:
    """A writer of TensorBoard scalars, one folder per split, so that charts overlay training and validation.

    Values that cannot be written, as on a full disk, are kept in memory and written with the next ones.
    """

    def __init__(self, directory: pathlib.Path, *, note: Callable[[str], None] = lambda _: None) -> None:
        """Write below `directory`; `note` is called with a sentence when values cannot be written."""
        self._directory, self._note = directory, note
        self._writers: dict[str, Any] = {}
        self._waiting: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self._tried_at_secs: dict[str, float] = {}

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None:
        """Write one scalar a value."""
        waiting = self._waiting.setdefault(split, [])
        was_waiting = bool(waiting)
        waiting.append((int(step), dict(values)))
        if not was_waiting or time.monotonic() - self._tried_at_secs[split] >= _RETRY_SECS:
            self._try_to_write(split, waiting, was_waiting=was_waiting)

    def _try_to_write(self, split: str, waiting: list[tuple[int, dict[str, float]]], *, was_waiting: bool) -> None:
        self._tried_at_secs[split] = time.monotonic()
        try:
            self._write_waiting(split, waiting, has_failed=was_waiting)
        except (OSError, _tf_errors().OpError) as e:
            self._writers.pop(split, None)
            if not was_waiting:
                # TensorFlow puts the name of an operation before it.
                reason = " ".join(str(e).rpartition("}} ")[2].split())[:300]
                self._note(
                    f"warning: the metrics of step {waiting[0][0]} could not be written for TensorBoard to "
                    f"{self._directory / split} ({reason}); they are kept in memory and written with the next ones"
                )
        else:
            waiting.clear()

    def _write_waiting(self, split: str, waiting: list[tuple[int, dict[str, float]]], *, has_failed: bool) -> None:
        import tensorflow as tf

        if has_failed:
            # Some of the values may have been written.
            remove_later_events(self._directory / split, waiting[0][0] - 1)
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(str(self._directory / split))
        with self._writers[split].as_default():
            for step, values in waiting:
                for name, value in values.items():
                    tf.summary.scalar(name, value, step=step)
        self._writers[split].flush()

    def truncate_after(self, step: int) -> None:
        """Remove the values of later steps, for a run that resumes from the checkpoint of `step`."""
        remove_later_events(self._directory, step)

    def close(self) -> None:
        """Close the files; charts are a copy of `metrics.jsonl`, so values that are left are given up."""
        for split, waiting in self._waiting.items():
            if waiting:
                self._try_to_write(split, waiting, was_waiting=True)
            if waiting:
                self._note(
                    f"warning: {self._directory / split} lacks the metrics of {len(waiting)} steps from step "
                    f"{waiting[0][0]} on, which could not be written; metrics.jsonl has them"
                )
        while self._writers:
            with contextlib.suppress(_tf_errors().OpError):
                self._writers.popitem()[1].close()


def _tf_errors() -> Any:
    """Return the exceptions of TensorFlow, which is imported where it is needed only."""
    import tensorflow as tf

    return tf.errors


class MetricWriters:
    """Several writers used as one; as a context manager it closes them all."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = list(writers)

    def write(self, step: int, split: MetricsSplit, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, split, values)

    def close(self) -> None:
        """Close all of them, also where one raises an exception."""
        with contextlib.ExitStack() as closing:
            for writer in reversed(self._writers):
                closing.callback(writer.close)

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
