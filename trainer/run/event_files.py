"""Remove events from the event files of TensorBoard, for a run that goes on from an earlier step."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from trainer.system import atomic


def remove_later_events(directory: pathlib.Path, step: int) -> int:
    """Remove the events of steps after `step` from all event files below `directory`; return how many.

    A file is replaced in one operation, so that a kill leaves it with these events or without them. `SessionLog.START`,
    by which TensorBoard drops later steps of its own accord, does not reach the tensors that TensorFlow 2 writes.

    Raises:
        OSError: a file cannot be written.
    """
    num_removed = 0
    for folder in sorted({file.parent for file in _event_files(directory)}):
        atomic.remove_temporaries(folder)
        num_removed += sum(_remove_from(file, step) for file in _event_files(folder))
    return num_removed


def _event_files(directory: pathlib.Path) -> list[pathlib.Path]:
    found = directory.rglob("*tfevents*")
    return sorted(file for file in found if not file.name.startswith(atomic.TEMPORARY_PREFIX))


def _remove_from(file: pathlib.Path, step: int) -> int:
    import tensorflow as tf

    kept, num_later = [], 0
    for record in _whole_records(file):
        is_later = tf.compat.v1.Event.FromString(record).step > step
        num_later += is_later
        if not is_later:
            kept.append(record)
    if num_later:
        _write_records(file, kept)
    return num_later


def _whole_records(file: pathlib.Path) -> Iterator[bytes]:
    """Yield the records of `file` up to one that a kill has left incomplete."""
    import tensorflow as tf

    records: Any = iter(tf.data.TFRecordDataset(str(file)))
    while True:
        try:
            record = next(records)
        except (StopIteration, tf.errors.DataLossError):
            return
        yield bytes(record.numpy())


def _write_records(file: pathlib.Path, records: list[bytes]) -> None:
    import tensorflow as tf

    # Not named like an event file until it is whole.
    temporary = atomic.temporary_name(file.with_name("events"))
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for record in records:
                writer.write(record)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    except tf.errors.OpError as e:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{file} cannot be written: {' '.join(str(e.message).split())[:200]}") from e
    atomic.sync_directory(file.parent)
